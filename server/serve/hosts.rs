//! Under which names the server answers.
//!
//! A page of any origin can make its own name lead to an address of the machine that it is shown on (DNS
//! rebinding), and its requests then have the right origin. What it cannot change is the name in `Host`. So a
//! server that is reached from its own machine alone, and therefore needs no key, answers only under names
//! that mean that machine.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderValue, Uri, Version};

use super::error::ApiError;

#[derive(Debug)]
pub struct Hosts {
    /// None where every name is answered.
    names: Option<Vec<Name>>,
    /// Whether every address is answered, as a cluster's probes send them: nobody else can make one lead
    /// here.
    addresses: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Name {
    Exact(String),
    /// What ends in this, which begins with a dot.
    Below(String),
}

impl Hosts {
    /// What is answered by a server that listens on `address`, which the command line calls `listen`, and
    /// says `allowed` of.
    pub fn new(address: SocketAddr, listen: &str, allowed: &[String]) -> Result<Self> {
        let mut names = Vec::new();
        for entry in allowed {
            if entry == "*" {
                return Ok(Self::any());
            }
            let name = entry.strip_prefix('*').unwrap_or(entry);
            let below = name.starts_with('.');
            let plain = host(name.strip_prefix('.').unwrap_or(name));
            ensure!(
                !plain.is_empty() && !plain.contains(['*', '/', '@', ' ']) && (below || name == entry),
                "--allowed-hosts is {entry:?}, expected a name such as example.org, *.example.org, or * for any"
            );
            names.push(match below {
                true => Name::Below(format!(".{plain}")),
                false => Name::Exact(plain),
            });
        }
        let is_local = address.ip().to_canonical().is_loopback();
        if !is_local && names.is_empty() {
            return Ok(Self::any());
        }
        names.push(Name::Exact("localhost".into()));
        // Browsers look no name below it up.
        names.push(Name::Below(".localhost".into()));
        names.push(Name::Exact(host(listen)));
        Ok(Self {
            names: Some(names),
            addresses: !is_local,
        })
    }

    fn any() -> Self {
        Self {
            names: None,
            addresses: true,
        }
    }

    /// Refuses a request that was sent to another name, be it in the target or in `Host`.
    pub fn check(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(names) = &self.names else {
            return Ok(());
        };
        let mut given: Vec<&[u8]> = headers.get_all(HOST).iter().map(HeaderValue::as_bytes).collect();
        given.extend(uri.authority().map(|authority| authority.as_str().as_bytes()));
        if given.is_empty() {
            // Checks of proxies still speak HTTP/1.0, which has no such header. Browsers do not.
            let is_probe = version <= Version::HTTP_10 && matches!(uri.path(), "/health" | "/ready");
            return match is_probe {
                true => Ok(()),
                false => Err(ApiError::Misdirected(String::new())),
            };
        }
        for given in given {
            let name = std::str::from_utf8(given).map(host).unwrap_or_default();
            if !self.has_address(&name) && !has_name(names, &name) {
                let start = String::from_utf8_lossy(given).chars().take(200).collect();
                return Err(ApiError::Misdirected(start));
            }
        }
        Ok(())
    }

    /// Whether a name is an address that is answered.
    fn has_address(&self, name: &str) -> bool {
        let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = literal.unwrap_or(name).parse::<IpAddr>();
        address.is_ok_and(|ip| self.addresses || ip.to_canonical().is_loopback())
    }
}

fn has_name(names: &[Name], name: &str) -> bool {
    names.iter().any(|known| match known {
        Name::Exact(known) => name == known,
        Name::Below(end) => name.len() > end.len() && name.ends_with(end.as_str()),
    })
}

/// The name without the port, in small letters and without the dot that may end it.
fn host(text: &str) -> String {
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => {
            // The colons of an address without brackets are not those of a port.
            if name.contains(':') && !name.starts_with('[') {
                text
            } else {
                name
            }
        }
        _ => text,
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &str, listen: &str, allowed: &[&str]) -> Hosts {
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        Hosts::new(address.parse().unwrap(), listen, &allowed).unwrap()
    }

    fn answers(hosts: &Hosts, name: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_bytes(name.as_bytes()).unwrap());
        hosts
            .check(Version::HTTP_11, &Uri::from_static("/info"), &headers)
            .is_ok()
    }

    #[test]
    fn a_loopback_address_answers_to_local_names() {
        let local = hosts(
            "127.0.0.1:8080",
            "MyBox:8080",
            &["models.example", "*.example.org"],
        );
        for name in [
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "localhost.:80",
            "a.localhost:1",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.1.2.3",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:8080",
            "mybox:8080",
            "models.example:8080",
            "a.example.org",
        ] {
            assert!(answers(&local, name), "{name}");
        }
        for name in [
            "",
            ":8080",
            "evil.example",
            "localhost.evil.example",
            "evillocalhost",
            ".localhost",
            "127.0.0.1.evil.example:8080",
            "localhost@evil.example",
            "evil.example@localhost",
            "evil.example#localhost",
            "localhost, evil.example",
            "192.168.0.7:8080",
            "0.0.0.0:8080",
            "[::]:8080",
            "[::1",
            "2130706433",
            "example.org",
            "xexample.org",
            "localhost:evil.example",
            "l\u{f6}calhost",
        ] {
            assert!(!answers(&local, name), "{name}");
        }
        // Several names, and the one in the target.
        let mut headers = HeaderMap::new();
        headers.append(HOST, HeaderValue::from_static("localhost"));
        let check = |headers: &HeaderMap, uri: &'static str, version| {
            local.check(version, &Uri::from_static(uri), headers).is_ok()
        };
        assert!(check(&headers, "http://localhost:8080/info", Version::HTTP_11));
        assert!(!check(&headers, "http://evil.example/info", Version::HTTP_11));
        headers.append(HOST, HeaderValue::from_static("evil.example"));
        assert!(!check(&headers, "/info", Version::HTTP_11));
        // None at all.
        assert!(!check(&HeaderMap::new(), "/info", Version::HTTP_10));
        assert!(!check(&HeaderMap::new(), "/health", Version::HTTP_11));
        assert!(check(&HeaderMap::new(), "/health", Version::HTTP_10));
    }

    #[test]
    fn other_addresses_answer_to_all_names_unless_they_are_given() {
        for listen in ["0.0.0.0:80", "192.168.0.7:80", "[::]:80"] {
            assert!(answers(&hosts(listen, listen, &[]), "anything"), "{listen}");
            let named = hosts(listen, listen, &["models.example"]);
            assert!(answers(&named, "10.0.0.7:80") && answers(&named, "[fd00::1]"));
            assert!(
                answers(&named, "models.example")
                    && answers(&named, "localhost")
                    && !answers(&named, "anything")
            );
        }
        assert!(answers(&hosts("[::1]:80", "[::1]:80", &["*"]), "anything"));
        assert!(!answers(&hosts("[::1]:80", "[::1]:80", &[]), "anything"));
        for wrong in ["", "a b", "*a", "a*", "http://a", "*.", "."] {
            let allowed = [wrong.to_owned()];
            assert!(
                Hosts::new("127.0.0.1:80".parse().unwrap(), "a:80", &allowed).is_err(),
                "{wrong}"
            );
        }
    }
}
