//! A worker without Python, for `scale.py`: it answers as an ipykernel with our helper would whose cells do nothing. A cell
//! whose source ends in `# until PATH` ends once that file is there. `worker … -f CONNECTION_FILE …`

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use cellferry_kernel::connection::ConnectionFile;
use cellferry_kernel::message::Message;
use cellferry_kernel::{Author, Frontend, Incoming, bind};
use serde_json::{Value, json};

const LOOK: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "-f");
    let path = arguments.nth(1).ok_or("usage: worker -f CONNECTION_FILE")?;
    let file = ConnectionFile::read(Path::new(&path))?;
    let Frontend {
        mut requests,
        outbox,
    } = bind(&file).await?;
    let author = Author::new();
    while let Some(Incoming { channel, message }) = requests.recv().await {
        let msg_type = message.parse_header()?.msg_type;
        let publish = |msg_type: &str, content: Value| {
            outbox.publish(author.message(msg_type, Some(&message), &content));
        };
        publish("status", json!({"execution_state": "busy"}));
        let content = match msg_type.as_str() {
            "kernel_info_request" => json!({
                "status": "ok", "protocol_version": "5.4", "implementation": "worker",
                "implementation_version": "1", "banner": "", "help_links": [],
                "language_info": {"name": "python", "version": "3", "mimetype": "text/plain", "file_extension": ".py"},
            }),
            "execute_request" => {
                let orders: Value = serde_json::from_slice(&message.metadata)?;
                if let Some(orders) = orders.get("cellferry") {
                    let code = message.parse_content::<Value>()?["code"].clone();
                    publish(
                        "execute_input",
                        json!({"code": code, "execution_count": orders["count"]}),
                    );
                    if let Some((_, path)) =
                        code.as_str().and_then(|code| code.split_once("# until "))
                    {
                        while !Path::new(path.trim()).exists() {
                            tokio::time::sleep(LOOK).await;
                        }
                    }
                    publish("cellferry_report", json!({"bound": {}, "seconds": 0.0}));
                }
                json!({"status": "ok", "execution_count": 1, "user_expressions": {}})
            }
            _ => json!({"status": "ok"}),
        };
        let reply = author.message(
            &msg_type.replace("_request", "_reply"),
            Some(&message),
            &content,
        );
        let identities = message.identities.clone();
        outbox.send(
            channel,
            Message {
                identities,
                ..reply
            },
        );
        publish("status", json!({"execution_state": "idle"}));
        if msg_type == "shutdown_request" {
            break;
        }
    }
    outbox.flush(Duration::from_secs(2)).await;
    Ok(())
}
