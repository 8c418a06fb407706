//! A toy kernel: each cell's source is its output. `echo CONNECTION_FILE`

use std::path::Path;
use std::time::Duration;

use cellferry_kernel::connection::ConnectionFile;
use cellferry_kernel::message::Message;
use cellferry_kernel::{Author, Frontend, Incoming, bind};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: echo CONNECTION_FILE")?;
    let file = ConnectionFile::read(Path::new(&path))?;
    let Frontend {
        mut requests,
        outbox,
    } = bind(&file).await?;
    let author = Author::new();
    let mut count = 0;
    while let Some(Incoming { channel, message }) = requests.recv().await {
        let Ok(header) = message.parse_header() else {
            continue;
        };
        let publish = |msg_type: &str, content: Value| {
            outbox.publish(author.message(msg_type, Some(&message), &content));
        };
        publish("status", json!({"execution_state": "busy"}));
        let content = match header.msg_type.as_str() {
            "kernel_info_request" => json!({
                "status": "ok", "protocol_version": "5.4", "implementation": "echo",
                "implementation_version": "1", "banner": "echo", "help_links": [],
                "language_info": {"name": "echo", "version": "1", "mimetype": "text/plain", "file_extension": ".txt"},
            }),
            "execute_request" => {
                count += 1;
                let code = message.parse_content::<Value>()?["code"].clone();
                publish("stream", json!({"name": "stdout", "text": code}));
                json!({"status": "ok", "execution_count": count, "user_expressions": {}})
            }
            _ => json!({"status": "ok", "restart": false}),
        };
        let reply_type = header.msg_type.replace("_request", "_reply");
        let reply = author.message(&reply_type, Some(&message), &content);
        outbox.send(
            channel,
            Message {
                identities: message.identities.clone(),
                ..reply
            },
        );
        publish("status", json!({"execution_state": "idle"}));
        if header.msg_type == "shutdown_request" {
            break;
        }
    }
    outbox.flush(Duration::from_secs(2)).await;
    Ok(())
}
