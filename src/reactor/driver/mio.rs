//! The readiness driver: epoll or kqueue, through mio.
