//! What the crate `ollama-rs` does, one line of `verb<TAB>JSON` for each answer: URL, then a GGUF file, as arguments.

use std::collections::HashMap;

use ollama_rs::generation::chat::{request::ChatMessageRequest, ChatMessage};
use ollama_rs::generation::completion::request::GenerationRequest;
use ollama_rs::generation::embeddings::request::GenerateEmbeddingsRequest;
use ollama_rs::models::{create::CreateModelRequest, ModelOptions};
use ollama_rs::Ollama;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_stream::StreamExt;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn say(verb: &str, value: impl serde::Serialize) {
    println!("{verb}\t{}", serde_json::to_string(&value).unwrap());
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().collect();
    let (url, file) = (&arguments[1], &arguments[2]);
    let client = Ollama::try_new(url.as_str())?;
    say("list", json!({"models": client.list_local_models().await?}));

    let few = || ModelOptions::default().num_predict(8).temperature(0.0);
    let question = || vec![ChatMessage::user("What is the capital of France?".into())];
    let chat = || ChatMessageRequest::new("smollm2".into(), question()).options(few());
    say("chat", client.send_chat_messages(chat()).await?);
    let mut parts = client.send_chat_messages_stream(chat()).await?;
    while let Some(part) = parts.next().await {
        say("chat-stream", part.map_err(|_| "a part of the stream could not be read")?);
    }
    let generate = || GenerationRequest::new("smollm2".into(), "The sea is").options(few());
    say("generate", client.generate(generate()).await?);
    let mut parts = client.generate_stream(generate()).await?;
    while let Some(part) = parts.next().await {
        for piece in part? {
            say("generate-stream", piece);
        }
    }
    say("system", client.generate(GenerationRequest::new("pirate".into(), "Hi")).await?);
    let input = vec!["one", "two"];
    say("embed", client.generate_embeddings(GenerateEmbeddingsRequest::new("all-minilm".into(), input.into())).await?);

    // The crate sends no blobs by itself; its users do, with the client under it.
    let content = std::fs::read(file)?;
    let digest = format!("sha256:{:x}", Sha256::digest(&content));
    let sent = reqwest::Client::new().post(format!("{url}/api/blobs/{digest}")).body(content).send().await?;
    assert_eq!(sent.status(), 201, "{}", sent.text().await?);
    let files = HashMap::from([("m.gguf".to_string(), digest)]);
    let making = CreateModelRequest::new("made".into()).files(files).system("Be brief.".into());
    say("create", client.create_model(making).await?);
    say("show", client.show_model_info("made".into()).await?);
    client.copy_model("made".into(), "copied".into()).await?;
    client.delete_model("made".into()).await?;
    client.delete_model("copied".into()).await?;
    match client.show_model_info("made".into()).await {
        Ok(_) => return Err("a deleted model was shown".into()),
        Err(error) => say("gone", json!({"error": error.to_string()})),
    }
    Ok(())
}
