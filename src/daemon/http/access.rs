//! Who may do what over HTTP.
//!
//! Without a token the server listens on loopback, and whoever reaches it is on this machine; but so is every browser here,
//! and the pages of others in it. So names of other machines are refused then (DNS rebinding). Requests of other pages are
//! always refused (cross-site request forgery), and what changes something has to be JSON, which no form can send. With a
//! token, everybody shows it: programs in a header, browsers once in the address, for which they get a cookie.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE, HOST, ORIGIN, REFERRER_POLICY,
    SET_COOKIE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest as _, Sha256};

use super::{Shared, refusal};

/// How long a browser keeps the cookie, in seconds: 30 days.
const COOKIE_AGE: u32 = 30 * 86_400;

/// What every answer tells the browser: nothing from elsewhere, nowhere else, not kept.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The rules of one server.
pub(super) struct Access {
    cookie: String,
    token: Option<Token>,
}

/// Hash of a token: what is compared tells nothing about the token by the time it takes.
#[derive(PartialEq)]
struct Token([u8; 32]);

impl Token {
    fn new(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

/// Why a request is refused.
#[derive(Debug, PartialEq)]
enum Denied {
    /// It was meant for another machine's name.
    Host(String),
    /// No token, or another one.
    Token,
    /// Another page has sent it.
    Foreign(String),
    /// It changes something and is no JSON.
    Type(String),
}

impl Denied {
    fn response(&self) -> Response {
        let (status, text) = match self {
            Self::Host(found) => (
                StatusCode::MISDIRECTED_REQUEST,
                format!(
                    "host {found:?}, expected localhost or a loopback address; without a token nobody else may ask"
                ),
            ),
            Self::Token => (
                StatusCode::UNAUTHORIZED,
                "the token of token_file is missing or wrong; open /?token=TOKEN, or send Authorization: Bearer TOKEN"
                    .to_owned(),
            ),
            Self::Foreign(found) => (
                StatusCode::FORBIDDEN,
                format!("a request of another page ({found}), expected one of this server's own page"),
            ),
            Self::Type(found) => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("content type {found:?}, expected application/json"),
            ),
        };
        refusal(status, &text)
    }
}

/// Text of a header, cut after 100 characters where it is shown; `None` if there is none.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

impl Access {
    pub(super) fn new(listen: SocketAddr, token: Option<&str>) -> Self {
        Self {
            // Cookies do not know of ports.
            cookie: format!("samclip-{}", listen.port()),
            token: token.map(Token::new),
        }
    }

    /// Whether a request may go on; if so, the cookie to give.
    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Option<String>, Denied> {
        if self.token.is_none() {
            check_host(uri, headers)?;
        }
        if uri.path() == "/healthz" {
            return Ok(None);
        }
        let token = self.check_token(uri, headers)?;
        let page = method == Method::GET && uri.path() == "/";
        // Nobody else's page knows the token; and whoever follows a link to the page comes from elsewhere.
        if !page && token != Some(Shown::Header) {
            check_origin(headers)?;
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            check_type(headers)?;
        }
        let cookie = |token: String| {
            let name = &self.cookie;
            format!("{name}={token}; Path=/; Max-Age={COOKIE_AGE}; HttpOnly; SameSite=Strict")
        };
        Ok(match token {
            Some(Shown::Address(token)) => Some(cookie(token)),
            _ => None,
        })
    }

    /// How the token was shown, if one is needed.
    fn check_token(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Shown>, Denied> {
        let Some(token) = &self.token else { return Ok(None) };
        let good = |found: &str| Token::new(found) == *token;
        let header = text(headers, AUTHORIZATION);
        let bearer = header.as_deref().and_then(|header| header.split_once(' '));
        if bearer.is_some_and(|(kind, found)| kind.eq_ignore_ascii_case("bearer") && good(found.trim())) {
            return Ok(Some(Shown::Header));
        }
        // Tokens consist of characters that stand for themselves in an address.
        let in_address = uri.query().into_iter().flat_map(|query| query.split('&'));
        let mut in_address = in_address.filter_map(|pair| pair.strip_prefix("token="));
        if uri.path() == "/"
            && let Some(found) = in_address.find(|found| good(found))
        {
            return Ok(Some(Shown::Address(found.to_owned())));
        }
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut cookies = cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        if cookies.any(|(name, found)| name == self.cookie && good(found)) {
            return Ok(Some(Shown::Cookie));
        }
        Err(Denied::Token)
    }
}

/// How a token was shown.
#[derive(PartialEq)]
enum Shown {
    Header,
    Address(String),
    Cookie,
}

/// Refuses names of other machines: a page of theirs that has its name point here must not pass for this one.
fn check_host(uri: &Uri, headers: &HeaderMap) -> Result<(), Denied> {
    let host = uri.authority().map(ToString::to_string).or_else(|| text(headers, HOST));
    let found = host.unwrap_or_default();
    let local = found.parse::<Authority>().is_ok_and(|authority| {
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    if local {
        Ok(())
    } else {
        Err(Denied::Host(shown(&found)))
    }
}

/// Refuses what the page of another server has sent. Browsers say where a request comes from; programs say nothing.
fn check_origin(headers: &HeaderMap) -> Result<(), Denied> {
    if let Some(site) = text(headers, HeaderName::from_static("sec-fetch-site"))
        && !matches!(site.as_str(), "same-origin" | "none")
    {
        return Err(Denied::Foreign(shown(&site)));
    }
    let Some(origin) = text(headers, ORIGIN) else {
        return Ok(());
    };
    let host = text(headers, HOST).unwrap_or_default();
    let own = origin
        .split_once("://")
        .is_some_and(|(scheme, name)| matches!(scheme, "http" | "https") && name.eq_ignore_ascii_case(&host));
    if own {
        Ok(())
    } else {
        Err(Denied::Foreign(shown(&origin)))
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Denied> {
    let found = text(headers, CONTENT_TYPE).unwrap_or_default();
    let kind = found.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Denied::Type(shown(&found)))
    }
}

/// Lets a request through or refuses it, and says on every answer what a browser may do with it.
pub(super) async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let checked = shared.access.check(request.method(), request.uri(), request.headers());
    let (mut response, cookie) = match checked {
        Ok(cookie) => (next.run(request).await, cookie),
        Err(denied) => (denied.response(), None),
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok()) {
        headers.insert(SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn check(access: &Access, method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Option<String>, Denied> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        access.check(&method.parse().unwrap(), &uri.parse().unwrap(), &map)
    }

    fn local() -> Access {
        Access::new("127.0.0.1:8080".parse().unwrap(), None)
    }

    fn open() -> Access {
        Access::new("0.0.0.0:8080".parse().unwrap(), Some(TOKEN))
    }

    #[test]
    fn without_a_token_only_names_of_this_machine_are_answered() {
        for host in [
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:8080",
            "127.0.0.2",
            "[::1]:9000",
        ] {
            assert_eq!(check(&local(), "GET", "/", &[("host", host)]), Ok(None), "{host}");
        }
        for host in [
            "evil.example:8080",
            "localhost.evil.example",
            "192.168.1.7:8080",
            "",
            "127.0.0.1@evil.example",
        ] {
            let denied = check(&local(), "GET", "/healthz", &[("host", host)]);
            assert_eq!(denied, Err(Denied::Host(host.to_owned())), "{host}");
        }
        assert_eq!(check(&local(), "GET", "/", &[]), Err(Denied::Host(String::new())));
        // The address in the request line goes before the header.
        let denied = check(&local(), "GET", "http://evil.example/", &[("host", "localhost")]);
        assert_eq!(denied, Err(Denied::Host("evil.example".into())));
    }

    #[test]
    fn changes_come_as_json_and_from_no_other_page() {
        let host = ("host", "localhost:8080");
        let json = ("content-type", "application/json; charset=utf-8");
        let post = |more: &[(&str, &str)]| check(&local(), "POST", "/api/reload", &[&[host], more].concat());
        assert_eq!(post(&[json]), Ok(None));
        let own = [
            json,
            ("origin", "http://localhost:8080"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert_eq!(post(&own), Ok(None));
        for origin in [
            "http://evil.example",
            "http://localhost:9090",
            "null",
            "file://localhost:8080",
        ] {
            assert_eq!(post(&[json, ("origin", origin)]), Err(Denied::Foreign(origin.into())));
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(
                post(&[json, ("sec-fetch-site", site)]),
                Err(Denied::Foreign(site.into()))
            );
        }
        assert_eq!(
            post(&[("content-type", "text/plain")]),
            Err(Denied::Type("text/plain".into()))
        );
        assert_eq!(post(&[]), Err(Denied::Type(String::new())));
    }

    #[test]
    fn another_page_may_lead_here_but_not_look() {
        let headers = [("host", "localhost"), ("sec-fetch-site", "cross-site")];
        assert_eq!(check(&local(), "GET", "/", &headers), Ok(None));
        let picture = check(&local(), "GET", "/api/cameras/yard/picture", &headers);
        assert_eq!(picture, Err(Denied::Foreign("cross-site".into())));
    }

    #[test]
    fn with_a_token_everybody_shows_it_but_health_needs_none() {
        let host = ("host", "camera.lan:8080");
        let ask = |uri: &str, header: (&str, &str)| check(&open(), "GET", uri, &[host, header]);
        let (none, wrong) = (("accept", "*/*"), ("authorization", "Bearer 0123456789abcdeg"));
        for uri in [
            "/",
            "/?token=0123456789abcdeg",
            "/?token=",
            "/page.js",
            "/api/state",
            "/metrics",
        ] {
            assert_eq!(ask(uri, none), Err(Denied::Token), "{uri}");
            assert_eq!(ask(uri, wrong), Err(Denied::Token), "{uri}");
        }
        assert_eq!(ask("/healthz", none), Ok(None));
        assert_eq!(ask("/metrics", ("authorization", "bearer 0123456789abcdef")), Ok(None));
        let cookie = "samclip-8080=0123456789abcdef; Path=/; Max-Age=2592000; HttpOnly; SameSite=Strict";
        assert_eq!(ask("/?token=0123456789abcdef", none), Ok(Some(cookie.into())));
        // Addresses end up in logs and histories: only the page takes it there.
        assert_eq!(ask("/api/state?token=0123456789abcdef", none), Err(Denied::Token));
        assert_eq!(
            ask("/api/state", ("cookie", "a=b; samclip-8080=0123456789abcdef")),
            Ok(None)
        );
        assert_eq!(
            ask("/api/state", ("cookie", "samclip-8081=0123456789abcdef")),
            Err(Denied::Token)
        );
    }

    #[test]
    fn a_cookie_does_not_let_other_pages_in_and_a_header_needs_no_origin() {
        let json = ("content-type", "application/json");
        let foreign = ("origin", "http://evil.example");
        let cookie = ("cookie", "samclip-8080=0123456789abcdef");
        let header = ("authorization", "Bearer 0123456789abcdef");
        let post = |headers: &[(&str, &str)]| check(&open(), "POST", "/api/reload", headers);
        assert_eq!(
            post(&[json, foreign, cookie]),
            Err(Denied::Foreign("http://evil.example".into()))
        );
        assert_eq!(post(&[json, foreign, header]), Ok(None));
    }
}
