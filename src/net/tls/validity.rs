//! Reads of an X.509 certificate what it is good for: when, and for which names (RFC 5280). Verifies nothing.

/// What a certificate says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    /// The DNS names it is for, in lower case.
    pub(super) names: Vec<String>,
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
/// id-ce-subjectAltName.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Reads a certificate in DER; `None` when it is none.
pub(super) fn facts(certificate: &[u8]) -> Option<Facts> {
    let mut outer = Der { rest: certificate };
    let mut certificate = outer.enter(SEQUENCE)?;
    let mut body = certificate.enter(SEQUENCE)?;
    if body.peek() == Some(VERSION) {
        body.next()?;
    }
    body.expect(INTEGER)?; // serial number
    body.expect(SEQUENCE)?; // signature algorithm
    body.expect(SEQUENCE)?; // issuer
    let mut validity = body.enter(SEQUENCE)?;
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let mut names = Vec::new();
    while let Some((tag, content)) = body.next() {
        if tag == EXTENSIONS {
            let mut extensions = Der { rest: content }.enter(SEQUENCE)?;
            while let Some(mut extension) = extensions.enter(SEQUENCE) {
                if extension.expect(OBJECT_IDENTIFIER)? == SUBJECT_ALT_NAME {
                    names = dns_names(extension)?;
                }
            }
        }
    }
    Some(Facts { not_before, not_after, names })
}

fn dns_names(mut extension: Der<'_>) -> Option<Vec<String>> {
    // Before the value there may be the critical flag.
    let value = loop {
        match extension.next()? {
            (OCTET_STRING, value) => break value,
            _ => continue,
        }
    };
    let mut general_names = Der { rest: value }.enter(SEQUENCE)?;
    let mut names = Vec::new();
    while let Some((tag, content)) = general_names.next() {
        if tag == DNS_NAME {
            names.push(std::str::from_utf8(content).ok()?.to_ascii_lowercase());
        }
    }
    Some(names)
}

/// A series of values, each with its tag and length before it.
struct Der<'a> {
    rest: &'a [u8],
}

impl<'a> Der<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.rest.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (len, rest) = if *first < 0x80 {
            (usize::from(*first), rest)
        } else {
            let count = usize::from(*first & 0x7f);
            if count == 0 || count > 4 {
                return None;
            }
            let (digits, rest) = rest.split_at_checked(count)?;
            (digits.iter().fold(0, |len, digit| len << 8 | usize::from(*digit)), rest)
        };
        let (content, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        Some((*tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.next()?;
        (found == tag).then_some(content)
    }

    fn enter(&mut self, tag: u8) -> Option<Der<'a>> {
        self.expect(tag).map(|rest| Der { rest })
    }

    fn time(&mut self) -> Option<i64> {
        let (tag, content) = self.next()?;
        let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (year, rest) = match tag {
            UTC_TIME => {
                let (year, rest) = text.split_at_checked(2)?;
                let year: i64 = year.parse().ok()?;
                (if year < 50 { 2000 + year } else { 1900 + year }, rest)
            }
            GENERALIZED_TIME => {
                let (year, rest) = text.split_at_checked(4)?;
                (year.parse().ok()?, rest)
            }
            _ => return None,
        };
        if rest.len() != 10 {
            return None;
        }
        let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
        let days = days_since_1970(year, part(0)?, part(2)?);
        Some(days * 86_400 + part(4)? * 3600 + part(6)? * 60 + part(8)?)
    }
}

/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> Vec<u8> {
        let names = vec!["Example.org".to_string(), "*.example.org".to_string()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 2, 29);
        params.not_after = rcgen::date_time_ymd(2061, 1, 1);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_tells_its_times_and_its_names() {
        let facts = facts(&certificate()).unwrap();
        // `date -u -d 2020-02-29 +%s`, and 2061-01-01, which is a GeneralizedTime.
        assert_eq!((facts.not_before, facts.not_after), (1_582_934_400, 2_871_763_200));
        assert_eq!(facts.names, ["example.org", "*.example.org"]);
    }

    #[test]
    fn whatever_the_bytes_nothing_panics() {
        let good = certificate();
        for end in 0..good.len() {
            assert!(facts(&good[..end]).is_none());
        }
        for at in 0..good.len() {
            for value in [0, 0x7f, 0x80, 0x84, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                facts(&bad);
            }
        }
    }
}
