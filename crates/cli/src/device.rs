//! `lockstep submit` and `lockstep sign`: what a device does.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use lockstep_client::{ClientError, Device, DeviceOptions, Outbox, OutboxError, Receipt};
use lockstep_identity::sign_body;
use lockstep_node::Gateway;
use lockstep_node::home::random_key;
use lockstep_types::{ProjectId, SigningKey};

use crate::args::{Message, Submit};

fn device_key(file: &Path, make: bool) -> anyhow::Result<SigningKey> {
    key_of("device", file, make)
}

fn key_of(whose: &str, file: &Path, make: bool) -> anyhow::Result<SigningKey> {
    if make && !file.exists() {
        let key = random_key()?;
        let digits = key.secret_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        made.write_all((digits + "\n").as_bytes())?;
        eprintln!("made {} for {whose} {}", file.display(), key.address());
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
    let message = &options.message;
    if let (Some(gateway), Some(peer)) = (&options.gateway_key, &options.peer) {
        let gateway = key_of("gateway", gateway, message.new_key)?;
        return submit_as_gateway(&gateway, peer, message, Duration::from_secs(options.timeout)).await;
    }
    let key = device_key(&message.key_file, message.new_key)?;
    let give_up_after = Duration::from_secs(options.timeout);
    let device_options = DeviceOptions { give_up_after, ..DeviceOptions::default() };
    let device = Device::builder(options.url.clone()).options(device_options).signing(key)?;
    let project = ProjectId(message.project);
    let Some(file) = &options.outbox else {
        return show(&device.submit(project, &message.project_version, &message.data).await?);
    };
    let outbox = Outbox::open(file)?;
    outbox.enqueue(&device, project, &message.project_version, &message.data)?;
    let mut shown = Ok(());
    let drained = outbox.drain(&device, |_, receipt| {
        if shown.is_ok() {
            shown = show(receipt);
        }
    });
    let drained = drained.await;
    shown?;
    match drained {
        Ok(drained) if drained.refused > 0 => {
            anyhow::bail!("{} messages were refused; they are in {}.refused", drained.refused, file.display())
        }
        Ok(_) => Ok(()),
        // The message is safe: this is what the outbox is for.
        Err(OutboxError::Client(error @ ClientError::Exhausted { .. })) => {
            eprintln!("{error}");
            eprintln!("{} messages wait in {}", outbox.waiting(), file.display());
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("{} messages wait in {}", outbox.waiting(), file.display())),
    }
}

async fn submit_as_gateway(key: &SigningKey, peer: &str, message: &Message, timeout: Duration) -> anyhow::Result<()> {
    let bundle = body(message)?;
    let gateway = Gateway::connect(key, peer, timeout).await?;
    let answer = gateway.submit(bundle.into(), timeout).await;
    let answer = answer.with_context(|| format!("gateway {}", key.address()))?;
    let answer: serde_json::Value = serde_json::from_slice(&answer).context("the node's answer is not JSON")?;
    // One message was sent: its own answer, or the whole bundle's.
    let answer = answer.get(0).unwrap_or(&answer);
    match answer.get("error").and_then(serde_json::Value::as_str) {
        Some(error) => anyhow::bail!("refused: {error} ({})", answer["code"].as_str().unwrap_or("no code")),
        None => println!("{}", serde_json::to_string_pretty(answer)?),
    }
    Ok(())
}

fn show(receipt: &Receipt) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(receipt)?);
    Ok(())
}
