//! Times as the reference writes them.

use lockstep_types::TimeMs;

/// RFC 3339 in UTC with milliseconds, for example `2026-11-22T07:30:00.125Z`.
pub fn rfc3339(time: TimeMs) -> String {
    let (seconds, millis) = (time.0 / 1000, time.0 % 1000);
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Gregorian date of a day counted from 1970-01-01. Years are counted from March, so that the leap day is the last
/// of its year, in cycles of 400 years (146,097 days).
fn civil_date(day: u64) -> (u64, u64, u64) {
    const DAYS_FROM_MARCH_OF_YEAR_0: u64 = 719_468;
    let day = day + DAYS_FROM_MARCH_OF_YEAR_0;
    let (cycle, in_cycle) = (day / 146_097, day % 146_097);
    let leap_days = in_cycle / 1_460 - in_cycle / 36_524 + in_cycle / 146_096;
    let year = (in_cycle - leap_days) / 365;
    let in_year = in_cycle - (365 * year + year / 4 - year / 100);
    // Months from March have 31, 30, 31, 30, 31 days, again and again: 153 days for each five.
    let month = (5 * in_year + 2) / 153;
    let day_of_month = in_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * cycle + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_are_written_as_known() {
        let known = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_210_096_789, "2024-02-29T12:34:56.789Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (ms, text) in known {
            assert_eq!(rfc3339(TimeMs(ms)), text);
        }
    }

    #[test]
    fn days_follow_each_other_for_five_centuries() {
        let mut last = civil_date(0);
        for day in 1..183_000 {
            let next = civil_date(day);
            let same_month = (last.0, last.1, last.2 + 1);
            let new_month = next.2 == 1 && (next.1 == last.1 + 1 || (next.1 == 1 && next.0 == last.0 + 1));
            assert!(next == same_month || new_month, "{last:?} {next:?}");
            last = next;
        }
        assert_eq!((last.0, last.1 <= 12), (2471, true));
    }
}
