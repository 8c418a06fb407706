//! What the kernel says of itself, before any worker is up.

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::target::home::{HomePython, python_version};

/// The version of the home Python, on its way or known.
pub struct Version {
    asked: Option<JoinHandle<Option<String>>>,
    known: Option<String>,
}

/// Asks for the version at once, so that it is there when the first client wants it.
pub fn python_version_of(python: Option<HomePython>) -> Version {
    let asked =
        python.map(|python| tokio::spawn(async move { python_version(&python.path).await }));
    Version { asked, known: None }
}

impl Version {
    /// The content of a `kernel_info_reply`: what ipykernel says of its language.
    pub async fn kernel_info(&mut self) -> Value {
        if let Some(asked) = self.asked.take() {
            self.known = asked.await.ok().flatten();
        }
        let version = self.known.as_deref().unwrap_or("3");
        let own = env!("CARGO_PKG_VERSION");
        json!({
            "status": "ok",
            "protocol_version": "5.4",
            "implementation": "cellferry",
            "implementation_version": own,
            "language_info": {
                "name": "python",
                "version": version,
                "mimetype": "text/x-python",
                "codemirror_mode": {"name": "ipython", "version": 3},
                "pygments_lexer": "ipython3",
                "nbconvert_exporter": "python",
                "file_extension": ".py",
            },
            "banner": format!("Cellferry {own} for Python {version}: one notebook namespace, many machines"),
            "help_links": [
                {"text": "Python Reference", "url": format!("https://docs.python.org/{}", minor(version))},
                {"text": "IPython Reference", "url": "https://ipython.org/documentation.html"},
                {"text": "NumPy Reference", "url": "https://docs.scipy.org/doc/numpy/reference/"},
                {"text": "SciPy Reference", "url": "https://docs.scipy.org/doc/scipy/reference/"},
                {"text": "Matplotlib Reference", "url": "https://matplotlib.org/contents.html/"},
                {"text": "pandas Reference", "url": "https://pandas.pydata.org/pandas-docs/stable/"},
            ],
            "debugger": true,
            "supported_features": ["debugger"],
        })
    }
}

/// `3.11` of `3.11.7`.
fn minor(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}
