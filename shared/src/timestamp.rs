//! Time as the contract writes it: ISO 8601 in UTC with exactly three decimals and `Z`, the form of
//! JavaScript's `Date.prototype.toISOString`.

use serde::{Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};
use time::{OffsetDateTime, PrimitiveDateTime};

const MICROS_PER_MILLI: i64 = 1_000;
const MILLIS_PER_SECOND: i64 = 1_000;
const MILLIS_PER_DAY: i64 = 86_400_000;
const NANOS_PER_MILLI: i128 = 1_000_000;
/// 2000-01-01, from where Postgres counts, in milliseconds since 1970.
const POSTGRES_EPOCH: i64 = 946_684_800_000;
/// 4714-11-24 BC in milliseconds since 1970: Postgres knows no earlier time.
const EARLIEST: i64 = -210_866_803_200_000;
/// The end of the year 294276 in milliseconds since 1970: Postgres knows no later time.
const LATEST: i64 = 9_224_318_015_999_999;
/// 275760-09-13 in milliseconds since 1970: JavaScript knows no later time.
const LATEST_WRITTEN: i64 = 8_640_000_000_000_000;

/// A point in time as a `TIMESTAMP(3)` column has it, in UTC: any that Postgres knows, also `infinity`.
///
/// The driver's own types know years up to 9999, and reading a later one ends the task that reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Since 2000-01-01, as Postgres counts; the least and the greatest number are its infinities.
    micros: i64,
}

impl Timestamp {
    /// Later than every other time.
    pub const INFINITY: Self = Self { micros: i64::MAX };
    /// Earlier than every other time.
    pub const MINUS_INFINITY: Self = Self { micros: i64::MIN };

    /// Cuts a time to milliseconds. Postgres would round up, into the future.
    pub fn truncate(time: OffsetDateTime) -> Self {
        let millis = time.unix_timestamp_nanos().div_euclid(NANOS_PER_MILLI);
        // What the type of the argument can hold is within Postgres's range by a wide margin, but for its first
        // years, when there was no log.
        let millis = i64::try_from(millis).unwrap_or_default().max(EARLIEST);
        Self { micros: (millis - POSTGRES_EPOCH) * MICROS_PER_MILLI }
    }

    /// Milliseconds since 1970; `None` for what Postgres does not know.
    pub fn from_unix_millis(millis: i64) -> Option<Self> {
        let is_known = (EARLIEST..=LATEST).contains(&millis);
        is_known.then(|| Self { micros: (millis - POSTGRES_EPOCH) * MICROS_PER_MILLI })
    }

    /// Milliseconds since 1970; `None` for an infinite one.
    pub fn unix_millis(self) -> Option<i64> {
        let is_finite = self != Self::INFINITY && self != Self::MINUS_INFINITY;
        is_finite.then(|| self.micros.div_euclid(MICROS_PER_MILLI) + POSTGRES_EPOCH)
    }

    /// As it is written: of what JavaScript does not know, or nobody, the nearest that both know.
    pub fn written_millis(self) -> i64 {
        let infinite = if self == Self::INFINITY { LATEST_WRITTEN } else { EARLIEST };
        self.unix_millis().unwrap_or(infinite).min(LATEST_WRITTEN)
    }

    /// As a time of the log, if it can be one.
    pub fn to_time(self) -> Option<OffsetDateTime> {
        let nanos = i128::from(self.unix_millis()?) * NANOS_PER_MILLI;
        OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
    }
}

/// Seconds since a time of the log; never negative, whatever the clocks of two machines say.
pub fn seconds_since(time: OffsetDateTime) -> f64 {
    (OffsetDateTime::now_utc() - time).as_seconds_f64().max(0.0)
}

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        <PrimitiveDateTime as Type<Postgres>>::type_info()
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        PrimitiveDateTime::array_type_info()
    }
}

impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self { micros: <i64 as Decode<Postgres>>::decode(value)? })
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <i64 as Encode<Postgres>>::encode(self.micros, buffer)
    }
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar of all times.
///
/// Years are counted from March here, so that a leap day is the last of its year: 400 of them, an era, have
/// 146,097 days, and the months of each begin after (153 m + 2) / 5 days.
fn civil(day: i64) -> (i64, i64, i64) {
    const DAYS_OF_ERA: i64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const DAYS_BEFORE: i64 = 719_468;
    let (era, of_era) =
        ((day + DAYS_BEFORE).div_euclid(DAYS_OF_ERA), (day + DAYS_BEFORE).rem_euclid(DAYS_OF_ERA));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (years, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (400 * era + year + years, month, day)
}

/// Digits of a number, so many as there is room for.
fn put(digits: &mut [u8], mut number: i64) {
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = self.written_millis();
        let (year, month, day) = civil(millis.div_euclid(MILLIS_PER_DAY));
        let of_day = millis.rem_euclid(MILLIS_PER_DAY);
        let (seconds, millis) = (of_day / MILLIS_PER_SECOND, of_day % MILLIS_PER_SECOND);
        // Digit by digit: every message that is stored, shown or read is written with one.
        let mut text = *b"0000-00-00T00:00:00.000Z";
        put(&mut text[0..4], year);
        put(&mut text[5..7], month);
        put(&mut text[8..10], day);
        put(&mut text[11..13], seconds / 3_600);
        put(&mut text[14..16], seconds / 60 % 60);
        put(&mut text[17..19], seconds % 60);
        put(&mut text[20..23], millis);
        let text = str::from_utf8(&text).unwrap_or_default();
        match year {
            0..=9_999 => f.write_str(text),
            // ECMA-262, "Expanded Years": a sign and six digits.
            _ => write!(f, "{year:+07}{}", &text[4..]),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn written(millis: i64) -> String {
        Timestamp::from_unix_millis(millis).unwrap().to_string()
    }

    #[test]
    fn three_decimals_cut_not_rounded_in_utc() {
        let time = datetime!(2024-12-13 10:30:05.9999 +1);
        assert_eq!(Timestamp::truncate(time).to_string(), "2024-12-13T09:30:05.999Z");
        let whole = Timestamp::truncate(datetime!(2024-12-13 10:30 UTC));
        assert_eq!(whole.to_string(), "2024-12-13T10:30:00.000Z");
        let before_1970 = Timestamp::truncate(datetime!(1969-12-31 23:59:59.9999 UTC));
        assert_eq!(before_1970.to_string(), "1969-12-31T23:59:59.999Z");
    }

    /// The expected texts are what `new Date(millis).toISOString()` gives.
    #[test]
    fn years_out_of_the_ordinary_are_written_as_javascript_does() {
        assert_eq!(written(-62_198_755_200_000), "-000001-01-01T00:00:00.000Z");
        assert_eq!(written(-62_167_219_200_001), "-000001-12-31T23:59:59.999Z");
        assert_eq!(written(-62_162_121_600_000), "0000-02-29T00:00:00.000Z");
        assert_eq!(written(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(written(253_402_300_800_000), "+010000-01-01T00:00:00.000Z");
        assert_eq!(written(EARLIEST), "-004713-11-24T00:00:00.000Z");
        assert_eq!(written(LATEST_WRITTEN), "+275760-09-13T00:00:00.000Z");
    }

    #[test]
    fn what_javascript_does_not_know_is_written_as_the_nearest_that_it_knows() {
        assert_eq!(written(LATEST), "+275760-09-13T00:00:00.000Z");
        assert_eq!(Timestamp::INFINITY.to_string(), "+275760-09-13T00:00:00.000Z");
        assert_eq!(Timestamp::MINUS_INFINITY.to_string(), "-004713-11-24T00:00:00.000Z");
        for millis in [LATEST + 1, EARLIEST - 1, i64::MIN, i64::MAX] {
            assert_eq!(Timestamp::from_unix_millis(millis), None);
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for day in -1_000_000..1_000_000 {
            let Ok(date) = time::Date::from_julian_day(day + 2_440_588) else { continue };
            let wanted = (date.year().into(), u8::from(date.month()).into(), date.day().into());
            assert_eq!(civil(day.into()), wanted);
        }
    }
}
