//! `lockstep keys`: the server secret for devices that encrypt, and the task key.

use std::fs;

use anyhow::{Context as _, bail};
use lockstep_identity::{ServerIdentity, ServerSecret};
use lockstep_node::Home;
use lockstep_node::devices::SecretCurve;
use lockstep_node::secrets::{SERVER_SECRET_FILE, SERVER_SECRET_OLD_FILE, parse_secret, secret_text};
use lockstep_types::SigningKey;
use zeroize::Zeroizing;

use crate::args::{KeysCommand, RotateCommand};

const TASK_KEY_FILE: &str = "task.key";
const TASK_KEY_OLD_FILE: &str = "task.key.old";

pub fn run(command: KeysCommand) -> anyhow::Result<()> {
    match command {
        KeysCommand::Show { home } => show(&Home::at(home)),
        KeysCommand::Rotate(RotateCommand::Server { home, file, curve }) => {
            let home = Home::at(home);
            let usual = home.config()?.devices.server_secret_curve;
            let curve = curve.map_or(usual, SecretCurve::from);
            let secret = match file {
                Some(file) => {
                    let text = Zeroizing::new(fs::read_to_string(&file).with_context(|| file.display().to_string())?);
                    parse_secret(&text, curve).with_context(|| file.display().to_string())?
                }
                None => ServerSecret::generate(curve.into(), &mut random()?),
            };
            let text = secret_text(&secret, usual);
            replace(&home, SERVER_SECRET_FILE, SERVER_SECRET_OLD_FILE, &text)?;
            println!("server   {}", ServerIdentity::new(secret).did());
            println!("restart the node; it takes tokens and messages for the secret before this one, too");
            Ok(())
        }
        KeysCommand::Rotate(RotateCommand::Task { home, file }) => {
            let home = Home::at(home);
            let key = match file {
                Some(file) => {
                    let text = Zeroizing::new(fs::read_to_string(&file).with_context(|| file.display().to_string())?);
                    SigningKey::from_hex(&text).with_context(|| format!("{}: not 64 hex digits", file.display()))?
                }
                None => lockstep_node::home::random_key()?,
            };
            let digits: String = key.secret_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            replace(&home, TASK_KEY_FILE, TASK_KEY_OLD_FILE, &Zeroizing::new(digits + "\n"))?;
            println!("task     {:?}", key.public());
            println!(
                "give every operator of an output that the network shares the same key, let its readers accept this \
                 public key beside the one before it, then restart the nodes: tasks from then on are signed with it"
            );
            Ok(())
        }
    }
}

fn random() -> anyhow::Result<rand::rngs::StdRng> {
    use rand::SeedableRng as _;
    rand::rngs::StdRng::try_from_rng(&mut rand::rngs::SysRng).context("the system gives no randomness")
}

/// Puts a new secret in a file's place and keeps the one before it.
fn replace(home: &Home, name: &str, old: &str, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let (path, old, new) = (home.path().join(name), home.path().join(old), home.path().join(format!("{name}.new")));
    if !home.path().join("node.key").exists() {
        bail!("{} is no node's home: make one with `lockstep init`", home.path().display());
    }
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    if path.exists() {
        fs::rename(&path, &old).with_context(|| path.display().to_string())?;
    }
    fs::rename(&new, &path).with_context(|| path.display().to_string())?;
    fs::File::open(home.path())?.sync_all()?;
    Ok(())
}

fn show(home: &Home) -> anyhow::Result<()> {
    let usual = home.config()?.devices.server_secret_curve;
    for (what, name) in [("server", SERVER_SECRET_FILE), ("server, before", SERVER_SECRET_OLD_FILE)] {
        if let Ok(text) = fs::read_to_string(home.path().join(name)) {
            let secret = parse_secret(&Zeroizing::new(text), usual).context(name)?;
            println!("{what}: {}", ServerIdentity::new(secret).did());
        }
    }
    for (what, name) in [("task", TASK_KEY_FILE), ("task, before", TASK_KEY_OLD_FILE), ("node", "node.key")] {
        if let Ok(text) = fs::read_to_string(home.path().join(name)) {
            let key = SigningKey::from_hex(&Zeroizing::new(text)).context(name)?;
            println!("{what}: {} {:?}", key.address(), key.public());
        }
    }
    Ok(())
}
