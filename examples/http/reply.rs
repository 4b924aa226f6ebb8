//! What the server says: its few pages, as bytes.

use shardwise::{Flow, Transport, WriteError};

/// What there is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Hello,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    ContentTooLarge,
    UriTooLong,
    ExpectationFailed,
    HeadersTooLarge,
    NotImplemented,
    VersionNotSupported,
}

/// A page, and how it is sent.
#[derive(Clone, Copy)]
pub struct Reply {
    pub page: Page,
    /// False for HEAD.
    pub with_body: bool,
    pub connection: Connection,
}

/// What becomes of the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It stays, as HTTP/1.1 takes for granted.
    Stays,
    /// It stays, and HTTP/1.0 has to be told.
    StaysAsAsked,
    Ends,
}

impl Reply {
    /// The last one on a connection whose requests cannot be understood any more.
    pub fn refusal(page: Page) -> Reply {
        Reply { page, with_body: true, connection: Connection::Ends }
    }

    pub fn write(self, transport: &Transport) -> Result<Flow, WriteError> {
        match self {
            Reply { page: Page::Hello, with_body: true, connection: Connection::Stays } => {
                transport.write(HELLO)
            }
            _ => transport.write(self.text().as_bytes()),
        }
    }

    fn text(self) -> String {
        let status = self.page.status();
        let text = if self.page == Page::Hello { "Hello, World!" } else { status };
        let allow = if self.page == Page::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let connection = match self.connection {
            Connection::Stays => "",
            Connection::StaysAsAsked => "Connection: keep-alive\r\n",
            Connection::Ends => "Connection: close\r\n",
        };
        let length = text.len();
        let body = if self.with_body { text } else { "" };
        format!(
            "HTTP/1.1 {status}\r\nServer: shardwise\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             {allow}{connection}\r\n{body}"
        )
    }
}

impl Page {
    fn status(self) -> &'static str {
        match self {
            Page::Hello => "200 OK",
            Page::BadRequest => "400 Bad Request",
            Page::NotFound => "404 Not Found",
            Page::MethodNotAllowed => "405 Method Not Allowed",
            Page::RequestTimeout => "408 Request Timeout",
            Page::ContentTooLarge => "413 Content Too Large",
            Page::UriTooLong => "414 URI Too Long",
            Page::ExpectationFailed => "417 Expectation Failed",
            Page::HeadersTooLarge => "431 Request Header Fields Too Large",
            Page::NotImplemented => "501 Not Implemented",
            Page::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// Almost every reply is this one, so it is not put together each time.
const HELLO: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: shardwise\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, World!";

/// RFC 9110 §15.2.1.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
