#![doc = include_str!("../README.md")]
#![warn(unreachable_pub)]
#![cfg_attr(not(feature = "tls"), allow(dead_code, reason = "code that only TLS uses is not told apart"))]

mod addr;
mod config;
mod cross_shard;
mod error;
#[allow(
    unsafe_code,
    reason = "values of forgotten type lie in a few words, where boxes would cost more than calls"
)]
mod inline;
mod net;
mod reactor;
mod runtime;
mod service;
mod shard;
mod shard_id;
mod sync;
mod sys;
mod tasks;
#[cfg(feature = "testing")]
pub mod testing;

pub use addr::{Addr, InvalidPath, ToUnixAddr, UnixAddr};
pub use config::{Config, Watermarks};
pub use cross_shard::{CallError, Panic, Route, Stopped};
pub use error::{
    CertificateProblem, CloseReason, ConfigError, ConnectError, InvalidAddress, InvalidName, ListenError,
    MulticastError, NotRunning, ProducerError, ResolveError, Result, RunError, SendError, TlsError,
    WriteError,
};
pub use net::addr::ToAddr;
pub use net::endpoint::{ClientEndpoint, LoadedClient, LoadedServer, ServerEndpoint};
pub use net::host_name::HostName;
pub use net::input::Input;
pub use net::ip_network::{InvalidNetwork, IpNetwork};
pub use net::resolver::{Lookup, Resolver};
pub use net::target::{ConnectTarget, ToTarget};
#[cfg(feature = "tls")]
pub use net::tls::{
    ClientCertificates, TlsCertificate, TlsClientConfig, TlsClientConfigBuilder, TlsConfigError, TlsInfo,
    TlsRole, TlsServerConfig, TlsServerConfigBuilder, TlsVersion,
};
pub use net::udp::AmplificationLimit;
pub use net::{endpoint, framing, proxy_protocol};
pub use reactor::driver::datagrams::MulticastInterface;
pub use runtime::app::App;
pub use runtime::embedded::Embedded;
pub use runtime::running::Running;
pub use runtime::{DriverKind, Runtime};
pub use service::{
    Backoff, ClientBuilder, ClientError, ClientEvents, ClientFailure, ClientService, ClientState,
    ClientStopping, ClientStreams, ClientUnset, WhenConnected,
};
pub use shard::Shard;
pub use shard::blocking_resolver::BlockingResolver;
pub use shard::handles::async_fd::AsyncFd;
pub use shard::handles::call::Call;
pub use shard::handles::connecting::Connecting;
pub use shard::handles::copy::{copy, copy_bidirectional};
pub use shard::handles::delayed_call::{DelayedCall, DelayedCallError};
pub use shard::handles::fd::{Fd, FdGuard};
pub use shard::handles::handle::{Handle, ShardReport};
pub use shard::handles::handle_call::HandleCall;
pub use shard::handles::listener::{Closing, Listener};
pub use shard::handles::resolving::Resolving;
pub use shard::handles::tcp_stream::{Chunk, DetachedTcpStream, Read, ReadChunk, TcpStream, WriteAll};
pub use shard::handles::transport::{Flow, ReadHold, Transport};
pub use shard::handles::udp_socket::{ReceiveDatagram, Received, UdpSocket};
pub use shard::handles::udp_transport::{SendDatagram, UdpTransport};
pub use shard::handles::unix::{DescriptorRefusal, DescriptorRefused, UnixStream};
pub use shard::handles::unix_datagram::{ReceiveUnixDatagram, UnixDatagram, UnixReceived};
pub use shard::interfaces::fd_set::FdHandler;
pub use shard::interfaces::socket::{AdoptError, AdoptReason};
pub use shard::interfaces::tcp::{ConnectOptions, ListenOptions};
pub use shard::interfaces::time::{Elapsed, Interval, Sleep, Timeout, interval, sleep, timeout};
pub use shard::interfaces::udp::{Datagram, DatagramProtocol, UdpOptions};
pub use shard::interfaces::unix::{UnixConnectOptions, UnixListenOptions};
pub use shard::interfaces::unix_datagram::UnixDatagramOptions;
pub use shard::layer::Layer;
pub use shard::lifecycle::RuntimeState;
pub use shard::placement::{CpuListError, parse_cpu_list};
pub use shard::policies;
pub use shard::producers::{Producer, ProducerKind};
pub use shard::protocol::{Factory, Incoming, Protocol};
pub use shard_id::ShardId;
pub use sys::socket::PeerCredentials;
pub use tasks::{JoinError, JoinHandle, PanicPayload, yield_now};
