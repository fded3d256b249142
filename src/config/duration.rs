//! DUR: the durations of timeout(1) (`90`, `1.5h`, `1e-3`, `infinity`), and else those of humantime (`1h 30m`, `500ms`).

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

/// A duration as a setting: it may be endless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationSetting {
    /// As a limit, zero means "no limit".
    Finite(Duration),
    /// `none`, `inf`, `infinity`
    Endless,
}

/// One that wakes up later than this, as after a stop, judges no deadline before it has caught up: what came in time may still be unread.
pub(crate) const LATE: Duration = Duration::from_millis(100);

/// Time to read what has come meanwhile.
pub const CATCH_UP: Duration = Duration::from_secs(1);

impl DurationSetting {
    /// A duration of `secs` seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self::Finite(Duration::from_secs(secs))
    }

    /// As a limit: zero and endless switch it off.
    pub fn as_limit(self) -> Option<Duration> {
        self.as_span().filter(|limit| !limit.is_zero())
    }

    /// As a length of time: `None` if endless.
    pub fn as_span(self) -> Option<Duration> {
        match self {
            Self::Finite(span) => Some(span),
            Self::Endless => None,
        }
    }

    /// Reads a DUR.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if matches!(text, "none" | "inf" | "infinity") {
            return Ok(Self::Endless);
        }
        let units = [('s', 1.0), ('m', 60.0), ('h', 3_600.0), ('d', 86_400.0)];
        let (number, unit) =
            units.iter().find_map(|(unit, secs)| Some((text.strip_suffix(*unit)?, *secs))).unwrap_or((text, 1.0));
        // Rust's float reader also takes "inf" and "nan".
        let in_digits =
            number.contains(|c: char| c.is_ascii_digit()) && number.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
        let mantissa = if in_digits { number.split(['e', 'E']).next().unwrap_or_default() } else { text };
        let is_zero = !mantissa.contains(|c| matches!(c, '1'..='9'));
        let span = match number.parse::<f64>() {
            Ok(_) if in_digits && number.starts_with('-') && !is_zero => {
                bail!("{text:?} is a negative duration; write 0 or more")
            }
            Ok(number) if in_digits => Duration::try_from_secs_f64(number.abs() * unit).unwrap_or(Duration::MAX),
            // To humantime, 10M is ten months.
            _ if text.split(|c: char| !c.is_ascii_alphabetic()).any(|unit| matches!(unit, "M" | "y")) => {
                bail!("{text:?} has a unit that others read otherwise; write 10m for minutes, 30d for a month, 365d for a year")
            }
            _ => humantime::parse_duration(text)
                .map_err(|_| anyhow!("{text:?} is no duration; write 90, 90s, 1.5, 10m, 2h, 1d or none"))?,
        };
        // What only rounds to zero is no "no limit".
        Ok(Self::Finite(if is_zero { span } else { span.max(Duration::from_nanos(1)) }))
    }
}

/// The instant `span` after `from`; `None` if that is beyond the clock's range, and so never comes.
pub(crate) fn after(from: Instant, span: Option<Duration>) -> Option<Instant> {
    from.checked_add(span?)
}

/// True if we were to wake up `at` that time, and are [late](LATE).
pub(crate) fn is_late(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) >= LATE)
}

/// True if we were to wake up `at` that time, and were stopped or frozen instead: a busy machine is rarely so late.
pub(crate) fn was_frozen(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) >= CATCH_UP
}

/// `span` as people write it, without fractions nobody wants to read.
pub fn show(span: Duration) -> String {
    if span.as_millis() == 0 {
        return humantime::format_duration(span).to_string();
    }
    let tenths = (span.as_millis() + 50) / 100;
    if tenths >= 100 {
        return show_seconds(span);
    }
    if tenths >= 10 && span.subsec_millis() > 0 {
        return format!("{}.{}s", tenths / 10, tenths % 10);
    }
    humantime::format_duration(Duration::from_millis(span.as_millis() as u64)).to_string()
}

/// `span` in full seconds, for text that changes while it is read.
pub fn show_seconds(span: Duration) -> String {
    humantime::format_duration(Duration::from_secs(span.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_of_timeout_and_humantime() -> Result<()> {
        for (text, millis) in [
            ("0", 0),
            ("90", 90_000),
            ("90s", 90_000),
            ("1.5", 1_500),
            ("1.5m", 90_000),
            ("10m", 600_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("1e-3", 1),
            (".5", 500),
            ("5.", 5_000),
            ("1e2", 100_000),
            ("+3", 3_000),
            ("500ms", 500),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("10min", 600_000),
        ] {
            assert_eq!(DurationSetting::parse(text)?, DurationSetting::Finite(Duration::from_millis(millis)), "{text}");
        }
        Ok(())
    }

    #[test]
    fn refuses_other_text() {
        for text in [
            "",
            "x",
            "-1",
            "-0.1s",
            "42D",
            "nan",
            "s",
            "1 2",
            "e",
            "-1e-10000",
            "0x0",
            "0x1p-2000",
            "NaN",
            "1e",
            "1,5",
            "5x",
            "++1",
            "1h-",
            "10M",
            "1y",
            "1h 2M",
        ] {
            let message = format!("{:#}", DurationSetting::parse(text).expect_err(text));
            assert!(message.contains(&format!("{text:?}")), "{message}");
        }
    }

    #[test]
    fn huge_is_endless_and_tiny_is_not_zero() -> Result<()> {
        let now = Instant::now();
        for text in ["1e300", "99999999999999999999d", "1e18h", "9223372036854775807", "18446744073709551615"] {
            let DurationSetting::Finite(span) = DurationSetting::parse(text)? else { panic!("{text}") };
            assert!(after(now, Some(span)).is_none_or(|at| at > now + Duration::from_secs(1 << 30)), "{text}");
        }
        for text in ["1e-30", "1e-10000", "0.0000000001s", "1e-9999d", "+1e-400", "000.1e-20", "1e-1000000000"] {
            assert_eq!(DurationSetting::parse(text)?, DurationSetting::Finite(Duration::from_nanos(1)), "{text}");
        }
        for text in ["0", "0e5", "0.0", "-0", "0e-10000", "0ms", "0h 0m", "00s"] {
            assert_eq!(DurationSetting::parse(text)?, DurationSetting::Finite(Duration::ZERO), "{text}");
        }
        assert_eq!(DurationSetting::parse("none")?.as_limit(), None);
        assert_eq!(DurationSetting::parse("0")?.as_limit(), None);
        Ok(())
    }

    #[test]
    fn shows_rounded_durations() {
        for (millis, text) in [(0, "0s"), (300, "300ms"), (1_000, "1s"), (1_005, "1.0s"), (1_500, "1.5s"), (8_989, "9.0s")] {
            assert_eq!(show(Duration::from_millis(millis)), text);
        }
        assert_eq!(show(Duration::from_millis(725_400)), "12m 5s");
    }
}
