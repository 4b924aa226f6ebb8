//! Every limit of a runtime, with its unit, its default and the reason for it. Decides nothing.

use std::time::Duration;

use crate::error::ConfigError;

/// Limits and times of a runtime. All finite by default: "unlimited" has to be written out.
///
/// ```
/// use shardwise::Config;
/// use std::time::Duration;
///
/// let mut config = Config::default();
/// config.drain_timeout = Duration::from_secs(5);
/// config.watermarks.high_bytes = 256 * 1024;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Size of a read buffer, in bytes; 64 KiB. A shard owns one, and more only while a task holds received
    /// bytes. It should be larger than the common message: a full read costs another system call.
    pub read_buffer_bytes: usize,
    /// What a protocol may leave unread of its input, in bytes; 1 MiB. Beyond it the connection is closed with
    /// [`CloseReason::InputTooLong`](crate::CloseReason::InputTooLong).
    pub input_bytes_max: usize,
    /// When a connection's output pauses and resumes its writer, and when it refuses more.
    pub watermarks: Watermarks,
    /// Finished handshakes that may wait at a listener, per shard; 4,096, which is also the kernel's own cap
    /// (`net.core.somaxconn`) by default.
    pub backlog: u32,
    /// Connections accepted per listener and turn; 32. Bounded, since in a reconnect storm endless accepting
    /// starves the open connections until they time out and reconnect too.
    pub accepts_per_turn: usize,
    /// Messages from other shards and threads run per turn; 1,024.
    pub messages_per_turn: usize,
    /// Events dispatched per turn; 1,024.
    pub events_per_turn: usize,
    /// Timers fired per turn; 256. After a long stall they fire in slices, so that I/O goes on between them.
    pub timers_per_turn: usize,
    /// Tasks polled per turn; 128, or until [`Config::task_time_per_turn`] is used up.
    pub tasks_per_turn: usize,
    /// How long tasks may be polled in one turn; 0.5 ms.
    pub task_time_per_turn: Duration,
    /// Datagrams received per socket and turn; 64. Bounded, since a flood costs nothing to send.
    pub datagrams_per_turn: usize,
    /// Their bytes, beyond which a socket waits for its next turn; 256 KiB.
    pub datagram_bytes_per_turn: usize,
    /// How long a connection may have output that the peer does not take; 30 s. The deadline starts anew with
    /// every byte taken.
    pub write_timeout: Duration,
    /// After we have closed, how long the peer may take to close too; 5 s. Meanwhile what it sends is read and
    /// thrown away: closing at once would reset the connection and destroy the answer on its way.
    pub linger_timeout: Duration,
    /// How many bytes are thrown away for it at the most; 64 KiB.
    pub linger_bytes_max: usize,
    /// How long an outgoing connection may take to be established, the lookup of its name included; 5 s.
    pub connect_timeout: Duration,
    /// How long the peer may take for its part of a TLS handshake, from the connection on; 10 s in all, however it
    /// progresses. The time that the peer waits for us is not counted.
    pub handshake_timeout: Duration,
    /// What a shard may keep, as the server, of TLS handshakes' messages that are incomplete or wait for their turn, in
    /// bytes; 4 MiB, which is thousands of common first messages. One may have 64 KiB. Beyond that the client goes that has
    /// begun a message and been silent for longest, with
    /// [`TlsError::TooManyHandshakes`](crate::TlsError::TooManyHandshakes): so nobody can keep others out by beginning.
    pub handshake_bytes_max: usize,
    /// How long a shard may work at TLS handshakes in one turn; 2 ms, which is a few of them. No longer either than all else
    /// has taken since the turn before, so that a flood of them leaves half of the time to the connections that stand; but
    /// one is dealt with in any case.
    pub handshake_time_per_turn: Duration,
    /// How long the header may take that a proxy puts before a connection's bytes, from the connection on; 5 s. The
    /// specification asks for 3 s at the least (section 2), so that a lost packet can be sent again.
    pub proxy_header_timeout: Duration,
    /// How long an address of a name is tried alone before the next one is tried beside it; 250 ms, as RFC 8305 §5
    /// recommends. At least 10 ms, as it demands, so that a name with many addresses does not become a burst.
    pub connect_attempt_delay: Duration,
    /// How many addresses of a name are tried for one connection, at the most; 32. A name's owner decides how many it has;
    /// in [`Config::connect_timeout`] silent ones use up 20.
    pub connect_addresses_max: usize,
    /// How long a name's addresses are looked for; 10 s: the C library gives each name server 5 s, twice
    /// (`resolv.conf(5)`).
    pub resolve_timeout: Duration,
    /// Threads on which the system's resolver looks up names, for all shards; 8. They start when needed. Each may hang for
    /// as long as a name server does.
    pub resolver_threads_max: usize,
    /// Lookups that may wait for one of these threads; 1,024, then [`ResolveError::Busy`](crate::ResolveError::Busy).
    pub resolver_queue_max: usize,
    /// How long such a thread stays without work; 10 s.
    pub resolver_thread_idle: Duration,
    /// From `stop` until the connections that are still open are aborted; 30 s. Also how long a listener that closes waits
    /// for descriptors for its queue.
    pub drain_timeout: Duration,
    /// While a listener that is open to the network closes: how long handshakes that are under way may take;
    /// 100 ms. Loopback listeners need none.
    pub handshake_grace: Duration,
    /// How long an awake shard looks for messages before it sleeps; 50 µs, about the price of a sleep and a wake.
    /// Only a shard that waits for replies, or has lately been called, and that has a CPU to itself, does.
    pub poll_before_park: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            read_buffer_bytes: 64 * 1024,
            input_bytes_max: 1024 * 1024,
            watermarks: Watermarks::default(),
            backlog: 4096,
            accepts_per_turn: 32,
            messages_per_turn: 1024,
            events_per_turn: 1024,
            timers_per_turn: 256,
            tasks_per_turn: 128,
            task_time_per_turn: Duration::from_micros(500),
            datagrams_per_turn: 64,
            datagram_bytes_per_turn: 256 * 1024,
            write_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(5),
            linger_bytes_max: 64 * 1024,
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            handshake_bytes_max: 4 * 1024 * 1024,
            handshake_time_per_turn: Duration::from_millis(2),
            proxy_header_timeout: Duration::from_secs(5),
            connect_attempt_delay: Duration::from_millis(250),
            connect_addresses_max: 32,
            resolve_timeout: Duration::from_secs(10),
            resolver_threads_max: 8,
            resolver_queue_max: 1024,
            resolver_thread_idle: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            handshake_grace: Duration::from_millis(100),
            poll_before_park: Duration::from_micros(50),
        }
    }
}

impl Config {
    /// Names the first setting that cannot work, and its range.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("read_buffer_bytes", self.read_buffer_bytes),
            ("input_bytes_max", self.input_bytes_max),
            ("accepts_per_turn", self.accepts_per_turn),
            ("messages_per_turn", self.messages_per_turn),
            ("events_per_turn", self.events_per_turn),
            ("timers_per_turn", self.timers_per_turn),
            ("tasks_per_turn", self.tasks_per_turn),
            ("handshake_bytes_max", self.handshake_bytes_max),
            ("connect_addresses_max", self.connect_addresses_max),
            ("resolver_threads_max", self.resolver_threads_max),
            ("resolver_queue_max", self.resolver_queue_max),
            ("datagrams_per_turn", self.datagrams_per_turn),
            ("datagram_bytes_per_turn", self.datagram_bytes_per_turn),
        ];
        for (setting, value) in at_least_one {
            if value == 0 {
                return Err(ConfigError { setting, range: "at least 1" });
            }
        }
        if self.read_buffer_bytes > 1 << 30 {
            return Err(ConfigError { setting: "read_buffer_bytes", range: "1 to 1 GiB" });
        }
        if self.backlog == 0 || self.backlog > i32::MAX as u32 {
            return Err(ConfigError { setting: "backlog", range: "1 to 2147483647" });
        }
        if self.connect_attempt_delay < Duration::from_millis(10) {
            return Err(ConfigError { setting: "connect_attempt_delay", range: "at least 10 ms" });
        }
        self.watermarks.check()
    }

    /// All limits, for the start-up block: a line for each subject, none longer than a screen is wide.
    pub(crate) fn lines(&self) -> [String; 6] {
        let Config {
            read_buffer_bytes,
            input_bytes_max,
            watermarks: Watermarks { high_bytes, low_bytes, cap_bytes },
            backlog,
            accepts_per_turn,
            messages_per_turn,
            events_per_turn,
            timers_per_turn,
            tasks_per_turn,
            task_time_per_turn,
            datagrams_per_turn,
            datagram_bytes_per_turn,
            write_timeout,
            linger_timeout,
            linger_bytes_max,
            connect_timeout,
            handshake_timeout,
            handshake_bytes_max,
            handshake_time_per_turn,
            proxy_header_timeout,
            connect_attempt_delay,
            connect_addresses_max,
            resolve_timeout,
            resolver_threads_max,
            resolver_queue_max,
            resolver_thread_idle,
            drain_timeout,
            handshake_grace,
            poll_before_park,
        } = self;
        let [read_buffer, input, high, low, cap, linger] =
            [read_buffer_bytes, input_bytes_max, high_bytes, low_bytes, cap_bytes, linger_bytes_max]
                .map(size);
        let [datagrams, handshakes] = [datagram_bytes_per_turn, handshake_bytes_max].map(size);
        [
            format!(
                "a connection: input {input}, output high {high}, low {low}, cap {cap}, write {write_timeout:?}"
            ),
            format!(
                "time: connect {connect_timeout:?}, linger {linger_timeout:?} or {linger}, drain {drain_timeout:?}, \
                 handshakes {handshake_grace:?}"
            ),
            format!(
                "a turn: {accepts_per_turn} accepts, {messages_per_turn} messages, {events_per_turn} events, \
                 {timers_per_turn} timers, {tasks_per_turn} tasks or {task_time_per_turn:?}"
            ),
            format!(
                "TLS: handshakes {handshakes}, {handshake_timeout:?} each, {handshake_time_per_turn:?} a turn; a proxy's \
                 header {proxy_header_timeout:?}"
            ),
            format!(
                "a shard: read buffer {read_buffer}, backlog {backlog}, poll {poll_before_park:?}; a datagram socket and \
                 turn: {datagrams_per_turn} or {datagrams}"
            ),
            format!(
                "a name: lookup {resolve_timeout:?}, {connect_addresses_max} addresses, one each \
                 {connect_attempt_delay:?}; all names: {resolver_threads_max} threads, idle {resolver_thread_idle:?}, \
                 queue {resolver_queue_max}"
            ),
        ]
    }
}

fn size(bytes: &usize) -> String {
    match bytes {
        0 => "0".to_string(),
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} bytes"),
    }
}

/// When a connection's unsent output pauses and resumes whoever writes it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Above this [`Protocol::write_paused`](crate::Protocol::write_paused) is called once; 64 KiB.
    pub high_bytes: usize,
    /// At or below this, after having been above high,
    /// [`Protocol::write_resumed`](crate::Protocol::write_resumed) is called once; 16 KiB.
    pub low_bytes: usize,
    /// A write that would leave more than this unsent is refused whole, with
    /// [`WriteError::Full`](crate::WriteError::Full); 1 MiB.
    pub cap_bytes: usize,
}

impl Default for Watermarks {
    fn default() -> Self {
        Watermarks { high_bytes: 64 * 1024, low_bytes: 16 * 1024, cap_bytes: 1024 * 1024 }
    }
}

impl Watermarks {
    fn check(&self) -> Result<(), ConfigError> {
        if self.low_bytes > self.high_bytes || self.high_bytes > self.cap_bytes || self.cap_bytes == 0 {
            return Err(ConfigError { setting: "watermarks", range: "low <= high <= cap, cap at least 1" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        Config::default().check().unwrap();
    }

    #[test]
    fn the_start_up_block_tells_every_limit_in_lines_that_fit_a_screen() {
        let lines = Config::default().lines();
        assert_eq!(
            lines,
            [
                "a connection: input 1 MiB, output high 64 KiB, low 16 KiB, cap 1 MiB, write 30s",
                "time: connect 5s, linger 5s or 64 KiB, drain 30s, handshakes 100ms",
                "a turn: 32 accepts, 1024 messages, 1024 events, 256 timers, 128 tasks or 500µs",
                "TLS: handshakes 4 MiB, 10s each, 2ms a turn; a proxy's header 5s",
                "a shard: read buffer 64 KiB, backlog 4096, poll 50µs; a datagram socket and turn: 64 or 256 KiB",
                "a name: lookup 10s, 32 addresses, one each 250ms; all names: 8 threads, idle 10s, queue 1024",
            ]
        );
        let odd = Config { read_buffer_bytes: 1000, linger_bytes_max: 0, ..Config::default() };
        assert!(odd.lines()[4].contains("1000 bytes") && odd.lines()[1].contains("5s or 0,"));
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let config = Config { tasks_per_turn: 0, ..Config::default() };
        let message = config.check().unwrap_err().to_string();
        assert_eq!(message, "setting `tasks_per_turn` is out of range: it must be at least 1");
        let mut config = Config::default();
        config.watermarks.low_bytes = config.watermarks.high_bytes + 1;
        assert!(config.check().unwrap_err().to_string().contains("watermarks"));
    }
}
