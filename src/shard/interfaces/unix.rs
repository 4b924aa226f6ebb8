//! IReactorUNIX: listening at and connecting to UNIX sockets.

use std::sync::Arc;
use std::time::Duration;

use crate::addr::{Addr, ToUnixAddr, UnixAddr};
use crate::error::{ConnectError, ListenError, Result};
use crate::net::tls::TlsRole;
use crate::reactor::driver::unix::UnixListenSpec;
use crate::shard::Shard;
use crate::shard::connecting::{ConnectHow, Goal, Preamble, Target};
use crate::shard::groups::{Group, GroupKey, Net};
use crate::shard::handles::connecting::Connecting;
use crate::shard::handles::listener::Listener;
use crate::shard::handles::unix::UnixStream;
use crate::shard::listening::{Opener, Opening, session_maker};
use crate::shard::policies::Policies;
use crate::shard::protocol::Factory;
use crate::sys::unix::{self, BindHow};

/// How to listen at a UNIX socket, where the defaults do not do.
#[derive(Clone, Debug)]
pub struct UnixListenOptions {
    pub(crate) how: BindHow,
    pub(crate) backlog: Option<u32>,
    pub(crate) descriptors: bool,
    pub(crate) secure: Option<TlsRole>,
    policies: Option<Arc<Policies>>,
}

impl Default for UnixListenOptions {
    fn default() -> Self {
        let how = BindHow { mode: MODE, lock: false };
        UnixListenOptions { how, backlog: None, descriptors: false, secure: None, policies: None }
    }
}

/// Only the user itself may connect or send.
pub(crate) const MODE: u32 = 0o600;

impl UnixListenOptions {
    /// The defaults.
    pub fn new() -> Self {
        UnixListenOptions::default()
    }

    /// Who may connect: the permissions of the file, of which writing counts; 0600 unless set. The file never has more
    /// than these, also not while it is being made, whatever the umask. Abstract names have none: anybody may connect.
    pub fn mode(mut self, mode: u32) -> Self {
        self.how.mode = mode;
        self
    }

    /// Holds a lock on `path.lock` for as long as it listens, so that a second server is refused even while the first one is
    /// busy, and a client can check that somebody is there ([`UnixConnectOptions::check`]). The lock of a process that
    /// has died counts for nothing. Off by default.
    pub fn lock(mut self, on: bool) -> Self {
        self.how.lock = on;
        self
    }

    /// What the connections are held to. They have no address to be limited by, but count in all.
    pub fn policies(mut self, policies: &Policies) -> Self {
        self.policies = Some(Arc::new(policies.clone()));
        self
    }

    /// Connections that may wait. The kernel cuts it down to `net.core.somaxconn`.
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = Some(connections.max(1));
        self
    }

    /// Whether the connections take descriptors: see
    /// [`Transport::set_takes_descriptors`](crate::Transport::set_takes_descriptors). Off by default.
    pub fn descriptors(mut self, on: bool) -> Self {
        self.descriptors = on;
        self
    }
}

/// How to connect to a UNIX socket, where the defaults do not do.
#[derive(Clone, Debug, Default)]
pub struct UnixConnectOptions {
    how: ConnectHow,
    check: bool,
    pub(crate) secure: Option<TlsRole>,
}

impl UnixConnectOptions {
    /// The defaults.
    pub fn new() -> Self {
        UnixConnectOptions::default()
    }

    /// Fails with [`ConnectError::NoOwner`], without trying, unless a live process holds the lock file beside the path
    /// ([`UnixListenOptions::lock`]). Off by default.
    pub fn check(mut self, on: bool) -> Self {
        self.check = on;
        self
    }

    /// What the connection is held to.
    pub fn policies(mut self, policies: &Policies) -> Self {
        self.how.policies = Some(Arc::new(policies.clone()));
        self
    }

    /// Gives up after this long, instead of [`Config::connect_timeout`](crate::Config::connect_timeout).
    pub fn timeout(mut self, after: Duration) -> Self {
        self.how.timeout = Some(after);
        self
    }

    /// Whether the connection takes descriptors: see
    /// [`Transport::set_takes_descriptors`](crate::Transport::set_takes_descriptors). Off by default.
    pub fn descriptors(mut self, on: bool) -> Self {
        self.how.takes_descriptors = on;
        self
    }
}

impl Shard {
    /// Listens at a UNIX socket, and makes a protocol for each connection that comes to this shard.
    ///
    /// The socket is bound, and listens, when this returns; connections are accepted once every shard has started. Of the
    /// shards that listen at the same name the first one accepts, and hands the connections out to all of them in turn:
    /// the kernel does not spread those of UNIX sockets. Closing it on one closes it on all; what waits in its queue is
    /// served.
    ///
    /// The file is made with mode 0600, and removed when the listener closes, unless something else is there by then. One
    /// that a dead process has left is removed; one behind which somebody lives is in use; and what is no socket is left
    /// alone. A name that begins with `@` is an abstract one: no file.
    ///
    /// # Errors
    /// [`ListenError`] names the socket and the cause.
    pub fn listen_unix<M>(
        &self,
        name: impl ToUnixAddr,
        factory: impl Factory<M>,
    ) -> std::result::Result<Listener<UnixAddr>, ListenError> {
        self.listen_unix_with(name, &UnixListenOptions::default(), factory)
    }

    /// As [`Shard::listen_unix`], with options; those of the first shard count.
    ///
    /// # Errors
    /// As [`Shard::listen_unix`].
    pub fn listen_unix_with<M>(
        &self,
        name: impl ToUnixAddr,
        options: &UnixListenOptions,
        mut factory: impl Factory<M>,
    ) -> std::result::Result<Listener<UnixAddr>, ListenError> {
        let opener = Opener::Protocols(Box::new(move |incoming| factory.build(incoming)));
        self.open_unix(name.to_unix_addr()?, options, opener)
    }

    /// Listens at a UNIX socket, and runs `handler` as a task for each connection that comes to this shard; as
    /// [`Shard::serve_tcp`] does, and the handler may be the same.
    ///
    /// # Errors
    /// As [`Shard::listen_unix`].
    pub fn serve_unix<H>(
        &self,
        name: impl ToUnixAddr,
        handler: H,
    ) -> std::result::Result<Listener<UnixAddr>, ListenError>
    where
        H: AsyncFn(UnixStream) -> Result<()> + 'static,
    {
        self.serve_unix_with(name, &UnixListenOptions::default(), handler)
    }

    /// As [`Shard::serve_unix`], with options; those of the first shard count.
    ///
    /// # Errors
    /// As [`Shard::listen_unix`].
    pub fn serve_unix_with<H>(
        &self,
        name: impl ToUnixAddr,
        options: &UnixListenOptions,
        handler: H,
    ) -> std::result::Result<Listener<UnixAddr>, ListenError>
    where
        H: AsyncFn(UnixStream) -> Result<()> + 'static,
    {
        let opener = match &options.secure {
            None => Opener::serving(handler),
            Some(_) => Opener::serving_secured(handler),
        };
        self.open_unix(name.to_unix_addr()?, options, opener)
    }

    fn open_unix(
        &self,
        name: UnixAddr,
        options: &UnixListenOptions,
        opener: Opener,
    ) -> std::result::Result<Listener<UnixAddr>, ListenError> {
        let opening = Opening {
            secure: options.secure.clone().map(session_maker),
            takes_descriptors: options.descriptors,
            policies: options.policies.clone(),
            ..opener.into()
        };
        let group = self.open_unix_listener(name, options.how, options.backlog, opening)?;
        Ok(Listener::unix(self.clone(), group))
    }

    /// Binds, or joins whoever of this runtime listens there already.
    pub(super) fn open_unix_listener(
        &self,
        name: UnixAddr,
        how: BindHow,
        backlog: Option<u32>,
        opening: Opening,
    ) -> std::result::Result<Arc<Group>, ListenError> {
        let addr = Addr::from(name.clone());
        let config = &self.inner.shared.config;
        let backlog = backlog.unwrap_or(config.backlog);
        let spec = UnixListenSpec { name, how, backlog, accepts_per_turn: config.accepts_per_turn };
        let key = GroupKey::Addr(Net::Unix, addr.clone());
        let joined =
            self.listen_handing_out(key, opening, |driver| Ok((driver.listen_unix(&spec)?, addr.clone())));
        joined.map_err(|refused| refused.at(addr))
    }

    /// Connects to a UNIX socket, and makes the connection's protocol when it stands.
    ///
    /// A listener whose queue is full is tried again until the attempt times out.
    ///
    /// # Errors
    /// None here: whatever goes wrong is the outcome of the attempt.
    pub fn connect_unix<M>(&self, name: impl ToUnixAddr, factory: impl Factory<M>) -> Connecting {
        self.connect_unix_with(name, &UnixConnectOptions::default(), factory)
    }

    /// As [`Shard::connect_unix`], with options.
    pub fn connect_unix_with<M>(
        &self,
        name: impl ToUnixAddr,
        options: &UnixConnectOptions,
        mut factory: impl Factory<M>,
    ) -> Connecting {
        let becomes = Target::Protocol(Box::new(move |incoming| factory.build(incoming)));
        let (goal, how, preamble) = options.attempt_at(name);
        Connecting::new(self.connect_to(goal, how, becomes, preamble))
    }
}

impl UnixConnectOptions {
    /// What an attempt to connect to `name` is.
    pub(in crate::shard) fn attempt_at(
        &self,
        name: impl ToUnixAddr,
    ) -> (std::result::Result<Goal, ConnectError>, ConnectHow, Preamble) {
        let goal = checked(name.to_unix_addr().map_err(ConnectError::from), self.check).map(Goal::Unix);
        (goal, self.how.clone(), Preamble::tls(self.secure.as_ref()))
    }
}

/// `name`, unless nobody alive holds the lock beside it and that was to be checked.
pub(super) fn checked(
    name: std::result::Result<UnixAddr, ConnectError>,
    check: bool,
) -> std::result::Result<UnixAddr, ConnectError> {
    let name = name?;
    match name.path() {
        Some(path) if check => match unix::lock_is_held(path) {
            Ok(true) => Ok(name),
            Ok(false) => Err(ConnectError::NoOwner { addr: name.into() }),
            Err(source) => Err(ConnectError::Os { addr: name.into(), source }),
        },
        _ => Ok(name),
    }
}
