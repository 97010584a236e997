//! What somebody decides about a port.

/// How a port is to be treated. May be changed while it is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// For people, and for commands that name a port.
    pub name: String,
}

impl PortSettings {
    /// A plain port of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
}
