//! Serde forms of the fields of run records and history lines.

use std::time::{Duration, SystemTime};

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serializer};
use serde_json::value::RawValue;

/// The first second that RFC 3339 cannot express: the year 10000.
const END_OF_TIME: u64 = 253_402_300_800;

/// Reads a field tolerantly: a value of another type, as another version may write, counts as missing.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let value = <&RawValue>::deserialize(deserializer)?;
    Ok(serde_json::from_str(value.get()).unwrap_or_default())
}

/// A time as all records have it: RFC 3339, UTC, milliseconds. Times beyond its range become the nearest one in it.
pub(crate) fn time(at: SystemTime) -> String {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(END_OF_TIME - 1);
    humantime::format_rfc3339_millis(at.clamp(SystemTime::UNIX_EPOCH, last)).to_string()
}

/// For `#[serde(with)]` on a `SystemTime`.
pub(crate) mod timestamp {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time(*at))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_times_are_clamped() {
        assert_eq!(time(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
        let late = SystemTime::UNIX_EPOCH + Duration::from_secs(END_OF_TIME * 2);
        assert_eq!(time(late), "9999-12-31T23:59:59.000Z");
    }
}
