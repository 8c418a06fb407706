//! Knowing the notebook: which file a session belongs to, and which of its cells a request is.
