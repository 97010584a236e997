//! What the system lets this process have.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Allows as many descriptors as the system lets us: a root takes about ten for each guest. Where that fails the
/// usual number has to do.
pub(crate) fn raise_descriptors() {
    if let Ok((now, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && now < most
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
