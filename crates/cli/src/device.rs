//! `lockstep submit` and `lockstep sign`: what a device does.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use lockstep_client::Client;
use lockstep_identity::sign_body;
use lockstep_node::home::random_key;
use lockstep_types::{ProjectId, SigningKey};

use crate::args::{Message, Submit};

fn device_key(file: &Path, make: bool) -> anyhow::Result<SigningKey> {
    if make && !file.exists() {
        let key = random_key()?;
        let digits = key.secret_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        made.write_all((digits + "\n").as_bytes())?;
        eprintln!("made {} for device {}", file.display(), key.address());
        return Ok(key);
    }
    let text = fs::read_to_string(file).with_context(|| format!("{} (make one with --new-key)", file.display()))?;
    SigningKey::from_hex(&text).with_context(|| format!("{}: not 64 hex digits", file.display()))
}

fn body(message: &Message) -> anyhow::Result<String> {
    let key = device_key(&message.key_file, message.new_key)?;
    Ok(sign_body(&key, ProjectId(message.project), &message.project_version, &message.data))
}

pub fn sign(message: &Message) -> anyhow::Result<()> {
    println!("{}", body(message)?);
    Ok(())
}

pub async fn submit(options: &Submit) -> anyhow::Result<()> {
    let client = Client::new(options.url.clone())?;
    let submitted = client.submit(body(&options.message)?, Duration::from_secs(options.timeout)).await?;
    println!("{}", serde_json::to_string_pretty(&submitted)?);
    Ok(())
}
