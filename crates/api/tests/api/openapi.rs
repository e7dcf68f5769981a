//! The OpenAPI document says what the handlers answer: every answer here is checked against it, member by member.

use crate::common::*;
use lockstep_api::Options;
use serde_json::Value;

/// Whether a value is what a schema says, as far as the document uses schemas; else where it is not.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).ok_or(format!("{reference} leads nowhere"))?;
        return check(document, target, value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fitting = choices.iter().filter(|choice| check(document, choice, value, at).is_ok()).count();
        return if fitting == 1 { Ok(()) } else { Err(format!("{at}: fits {fitting} of {} choices", choices.len())) };
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return Err(format!("{at}: {value} is not one of {allowed:?}"));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = match &schema["type"] {
        Value::String(wanted) => wanted == kind,
        Value::Array(wanted) => wanted.iter().any(|wanted| wanted == kind),
        _ => true,
    };
    if !fits {
        return Err(format!("{at}: {value} is not {}", schema["type"]));
    }
    match value {
        Value::Array(items) => (0..)
            .zip(items)
            .try_for_each(|(n, item): (usize, _)| check(document, &schema["items"], item, &format!("{at}[{n}]"))),
        Value::Object(members) if schema["properties"].is_object() => {
            let known = schema["properties"].as_object().unwrap();
            for required in schema["required"].as_array().into_iter().flatten() {
                if !members.contains_key(required.as_str().unwrap()) {
                    return Err(format!("{at}: {required} is missing"));
                }
            }
            members.iter().try_for_each(|(name, member)| match known.get(name) {
                Some(schema) => check(document, schema, member, &format!("{at}.{name}")),
                None => Err(format!("{at}: {name} is not in the document")),
            })
        }
        _ => Ok(()),
    }
}

/// The schema of an operation's answer with this status.
fn answer_schema<'a>(document: &'a Value, path: &str, method: &str, status: u16) -> &'a Value {
    let responses = &document["paths"][path][method]["responses"];
    let response = &responses[status.to_string()];
    assert!(response.is_object(), "{method} {path} has no {status}: {responses}");
    &response["content"]["application/json"]["schema"]
}

#[tokio::test]
async fn the_document_says_what_is_answered() {
    let fake = Fake { allow_unsigned: true, final_tasks: tokio::sync::watch::Sender::new(5), ..Fake::default() };
    let server = start_with(Options::default(), fake);
    let document = get(server.addr, "/api/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let (message, task) = ("02".repeat(32), "07".repeat(32));
    let signed = signed("21.5");
    let bulk = format!("[{signed},{},{{}}]", unsigned("1"));
    let tasks: [(&str, &str, String, String); 32] = [
        ("/api/status", "get", "/api/status".into(), String::new()),
        ("/api/members", "get", "/api/members".into(), String::new()),
        ("/api/batches", "get", "/api/batches?limit=2".into(), String::new()),
        ("/api/batches", "get", "/api/batches?from=13".into(), String::new()),
        ("/api/batches", "get", "/api/batches?from=x".into(), String::new()),
        ("/api/batches/{height}", "get", "/api/batches/1".into(), String::new()),
        ("/api/batches/{height}", "get", "/api/batches/0".into(), String::new()),
        ("/api/messages/{id}", "get", format!("/api/messages/{message}"), String::new()),
        ("/api/messages/{id}", "get", format!("/api/messages/{task}"), String::new()),
        ("/api/tasks", "get", "/api/tasks".into(), String::new()),
        ("/api/tasks", "get", "/api/tasks?after=1".into(), String::new()),
        ("/api/tasks/{id}", "get", format!("/api/tasks/{task}"), String::new()),
        ("/api/tasks/{id}", "get", "/api/tasks/x".into(), String::new()),
        ("/api/feed", "get", "/api/feed?after=1".into(), String::new()),
        ("/api/proofs/{id}", "get", format!("/api/proofs/{}", "03".repeat(32)), String::new()),
        ("/api/proofs/{id}", "get", format!("/api/proofs/{}", "04".repeat(32)), String::new()),
        ("/api/boundaries", "get", "/api/boundaries".into(), String::new()),
        ("/api/projects", "get", "/api/projects".into(), String::new()),
        ("/api/projects/{id}", "get", "/api/projects/7".into(), String::new()),
        ("/api/projects/{id}", "get", "/api/projects/8".into(), String::new()),
        ("/api/projects/{id}/devices", "get", "/api/projects/7/devices".into(), String::new()),
        ("/api/orders", "post", "/api/orders".into(), "good".into()),
        ("/api/orders", "post", "/api/orders".into(), "stale".into()),
        ("/message", "post", "/message".into(), signed),
        ("/message", "post", "/message".into(), unsigned("unavailable")),
        ("/message", "post", "/message".into(), unsigned("busy")),
        ("/message", "post", "/message".into(), "{}".into()),
        ("/messages", "post", "/messages".into(), bulk),
        ("/message/{id}", "get", format!("/message/{message}"), String::new()),
        ("/task", "get", format!("/task?projectID=7&taskID=0x{task}"), String::new()),
        ("/v1/task/{id}", "get", format!("/v1/task/0x{task}"), String::new()),
        ("/v1/task/{id}", "get", format!("/v1/task/0x{message}"), String::new()),
    ];
    for (path, method, target, body) in tasks {
        let answer = match method {
            "get" => get(server.addr, &target).await,
            _ => exchange(server.addr, &post_to(&target, body.as_bytes(), "")).await,
        };
        let schema = answer_schema(&document, path, method, answer.status);
        if let Err(wrong) = check(&document, schema, &answer.json(), "$") {
            panic!("{method} {target}: {wrong}\n{}", String::from_utf8_lossy(&answer.body));
        }
    }
}
