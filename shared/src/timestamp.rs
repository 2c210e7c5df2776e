//! Time as the contract writes it: ISO 8601 in UTC with exactly three decimals and `Z`, the form of
//! JavaScript's `Date.prototype.toISOString`.

use serde::{Serialize, Serializer};
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

/// A point in time with the precision of a `TIMESTAMP(3)` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(PrimitiveDateTime);

impl Timestamp {
    /// Cuts a time to milliseconds. Postgres would round up, into the future.
    pub fn truncate(time: OffsetDateTime) -> Self {
        let utc = time.to_offset(UtcOffset::UTC);
        Self(PrimitiveDateTime::new(utc.date(), utc.time().truncate_to_millisecond()))
    }

    /// The value of a `TIMESTAMP` column, which holds UTC.
    pub fn from_column(time: PrimitiveDateTime) -> Self {
        Self(time)
    }

    /// The value for a `TIMESTAMP` column, which holds UTC.
    pub fn to_column(self) -> PrimitiveDateTime {
        self.0
    }
}

/// Seconds since a time of the log; never negative, whatever the clocks of two machines say.
pub fn seconds_since(time: OffsetDateTime) -> f64 {
    (OffsetDateTime::now_utc() - time).as_seconds_f64().max(0.0)
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (date, time) = (self.0.date(), self.0.time());
        match date.year() {
            year @ 0..=9_999 => write!(f, "{year:04}")?,
            // ECMA-262, "Expanded Years": a sign and six digits.
            year => write!(f, "{year:+07}")?,
        }
        let (month, day) = (u8::from(date.month()), date.day());
        let (hour, minute, second, millis) = time.as_hms_milli();
        write!(f, "-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::{datetime, offset};

    use super::*;

    #[test]
    fn three_decimals_cut_not_rounded_in_utc() {
        let time = datetime!(2024-12-13 10:30:05.9999).assume_offset(offset!(+1));
        assert_eq!(Timestamp::truncate(time).to_string(), "2024-12-13T09:30:05.999Z");
        let whole = Timestamp::from_column(datetime!(2024-12-13 10:30));
        assert_eq!(whole.to_string(), "2024-12-13T10:30:00.000Z");
    }

    #[test]
    fn years_out_of_the_ordinary_are_written_as_javascript_does() {
        let early = Timestamp::from_column(datetime!(-0001-01-01 00:00));
        assert_eq!(early.to_string(), "-000001-01-01T00:00:00.000Z");
    }
}
