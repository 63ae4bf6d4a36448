//! The schedule of a Source, validated by the controller and run by routers. Pure.

use croner::parser::{CronParser, Seconds, Year};
use jiff::{Timestamp, tz::TimeZone};

use super::Cron;

/// Start of the year 4960. A schedule with no occurrence from then to 5000, where the search ends, never occurs,
/// because these years have each date on each day of the week. Searching from an earlier year takes milliseconds,
/// for each such Source whenever anything in the cluster changes.
const LAST_YEARS: Timestamp = Timestamp::constant(94_355_280_000, 0);

/// The times of a cron expression in a time zone.
///
/// Where clocks change, a schedule with one hour, one minute and one second runs once a day: a skipped time runs at
/// the first moment after the gap, and of a repeated time only the first counts. Any other schedule follows the
/// wall clock: skipped times do not run, and repeated times run twice.
#[derive(Clone, Debug)]
pub struct Schedule {
    cron: croner::Cron,
    zone: TimeZone,
}

/// Why a schedule is invalid. The text starts with the field of `spec.cron`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Invalid cron expression.
    #[error(
        "schedule {schedule:?}: {detail}; use five fields (minute, hour, day of month, month, day of week), such \
         as \"*/5 * * * *\", or six with seconds first"
    )]
    Expression {
        /// The expression.
        schedule: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The schedule has no occurrences.
    #[error("schedule {0:?} never occurs: none of its months has such a day")]
    Never(String),
    /// Unknown time zone.
    #[error("timeZone {0:?} is not an IANA time zone such as Europe/Berlin or UTC")]
    TimeZone(String),
}

impl ScheduleError {
    /// Stable label, used as the reason in a status.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Expression { .. } | Self::Never(_) => "InvalidSchedule",
            Self::TimeZone(_) => "InvalidTimeZone",
        }
    }
}

impl Schedule {
    /// Parses a schedule with five fields, or six with seconds first.
    ///
    /// # Errors
    /// [`ScheduleError`] for an invalid expression or time zone, or if it never occurs.
    pub fn parse(cron: &Cron) -> Result<Self, ScheduleError> {
        let Cron {
            schedule,
            time_zone,
            attributes: _,
            data: _,
            catch_up: _,
        } = cron;
        let zone = TimeZone::get(time_zone).map_err(|_| ScheduleError::TimeZone(time_zone.clone()))?;
        let cron = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build()
            .parse(schedule)
            .map_err(|error| ScheduleError::Expression {
                schedule: schedule.clone(),
                detail: detail(&error),
            })?;
        let parsed = Self { cron, zone };
        if parsed.next_after(LAST_YEARS).is_none() {
            return Err(ScheduleError::Never(schedule.clone()));
        }
        Ok(parsed)
    }

    /// Returns the first scheduled time after `time`, on a whole second.
    #[must_use]
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let from = time.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        Some(next.timestamp())
    }

    /// Returns the first of the last `count` scheduled times that are after `after`, and not after `until`.
    #[must_use]
    pub fn first_of_last(&self, count: usize, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let (mut from, mut first) = (until.to_zoned(self.zone.clone()), None);
        for index in 0..count {
            let Ok(time) = self.cron.find_previous_occurrence(&from, index == 0) else {
                break;
            };
            if time.timestamp() <= after {
                break;
            }
            first = Some(time.timestamp());
            from = time;
        }
        first
    }
}

fn detail(error: &croner::errors::CronError) -> String {
    use croner::errors::CronError;
    match error {
        CronError::EmptyPattern => "it is empty".to_owned(),
        CronError::InvalidPattern(detail)
        | CronError::IllegalCharacters(detail)
        | CronError::ComponentError(detail) => detail.trim_end_matches('.').to_owned(),
        CronError::InvalidDate | CronError::InvalidTime | CronError::TimeSearchLimitExceeded => {
            error.to_string().trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::CatchUp;

    fn cron(schedule: &str, time_zone: &str) -> Cron {
        Cron {
            schedule: schedule.to_owned(),
            time_zone: time_zone.to_owned(),
            attributes: Vec::new(),
            data: None,
            catch_up: CatchUp::None,
        }
    }

    fn next(schedule: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(&cron(schedule, zone)).unwrap();
        std::iter::successors(Some(after.parse().unwrap()), |time| schedule.next_after(*time))
            .skip(1)
            .take(count)
            .map(|time| time.to_string())
            .collect()
    }

    #[test]
    fn accepts_five_or_six_fields() {
        let after = "2026-11-24T08:00:00Z";
        for (schedule, expected) in [
            (
                "*/5 * * * *",
                vec!["2026-11-24T08:05:00Z", "2026-11-24T08:10:00Z"],
            ),
            (
                "0 8 * * MON-FRI",
                vec![
                    "2026-11-25T08:00:00Z",
                    "2026-11-26T08:00:00Z",
                    "2026-11-27T08:00:00Z",
                    "2026-11-30T08:00:00Z",
                ],
            ),
            ("0 0 1 * *", vec!["2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"]),
            ("0 0 29 2 *", vec!["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
            // Standard cron semantics: if both day of month and day of week are given, either may match.
            (
                "0 0 13 * FRI",
                vec![
                    "2026-11-27T00:00:00Z",
                    "2026-12-04T00:00:00Z",
                    "2026-12-11T00:00:00Z",
                    "2026-12-13T00:00:00Z",
                ],
            ),
            (
                "*/2 * * * * *",
                vec!["2026-11-24T08:00:02Z", "2026-11-24T08:00:04Z"],
            ),
            ("30 59 23 31 12 *", vec!["2026-12-31T23:59:30Z"]),
            ("* * * * * *", vec!["2026-11-24T08:00:01Z"]),
            ("0 0 * * 7", vec!["2026-11-29T00:00:00Z"]),
            ("@hourly", vec!["2026-11-24T09:00:00Z"]),
        ] {
            assert_eq!(
                next(schedule, "UTC", after, expected.len()),
                expected,
                "{schedule}"
            );
        }
    }

    #[test]
    fn next_time_is_later_and_on_a_whole_second() {
        assert_eq!(
            next("* * * * * *", "UTC", "2026-11-24T08:00:00.999Z", 1),
            ["2026-11-24T08:00:01Z"]
        );
        assert_eq!(
            next("0 8 * * *", "UTC", "2026-11-24T07:59:59.999Z", 1),
            ["2026-11-24T08:00:00Z"]
        );
        assert_eq!(
            next("0 8 * * *", "UTC", "2026-11-24T08:00:00.001Z", 1),
            ["2026-11-25T08:00:00Z"]
        );
    }

    #[test]
    fn evaluates_schedule_in_its_time_zone() {
        let after = "2026-06-30T12:00:00Z";
        assert_eq!(next("0 8 * * *", "UTC", after, 1), ["2026-07-01T08:00:00Z"]);
        assert_eq!(
            next("0 8 * * *", "Europe/Berlin", after, 1),
            ["2026-07-01T06:00:00Z"]
        );
        assert_eq!(
            next("0 8 * * *", "Asia/Kathmandu", after, 1),
            ["2026-07-01T02:15:00Z"]
        );
        assert_eq!(
            next("0 8 * * *", "America/New_York", "2026-12-31T12:00:00Z", 1),
            ["2026-12-31T13:00:00Z"]
        );
    }

    #[test]
    fn the_last_times_are_those_that_come_next() {
        let [after, until]: [Timestamp; 2] =
            ["2026-03-28T12:00:00Z", "2026-10-26T11:00:00.5Z"].map(|time| time.parse().unwrap());
        for text in [
            "30 2 * * *",
            "0 3 * * *",
            "*/30 1-3 * * *",
            "0 * * * *",
            "0 12 * * *",
            "0 8 * * MON-FRI",
            "0 0 1 1 *",
        ] {
            for zone in ["UTC", "Europe/Berlin", "Australia/Lord_Howe"] {
                let schedule = Schedule::parse(&cron(text, zone)).unwrap();
                let all: Vec<_> = std::iter::successors(Some(after), |time| schedule.next_after(*time))
                    .skip(1)
                    .take_while(|time| *time <= until)
                    .collect();
                for count in [1, 2, 3, 50, 100_000] {
                    let expected = all.get(all.len().saturating_sub(count)).copied();
                    let found = schedule.first_of_last(count, after, until);
                    assert_eq!(found, expected, "{text} {zone} {count}");
                }
                assert_eq!(schedule.first_of_last(0, after, until), None);
            }
        }
        let hourly = Schedule::parse(&cron("0 * * * *", "UTC")).unwrap();
        let on_time: Timestamp = "2026-03-28T13:00:00Z".parse().unwrap();
        assert_eq!(hourly.first_of_last(2, after, on_time), Some(on_time));
        assert_eq!(hourly.first_of_last(2, on_time, on_time), None);
    }

    #[test]
    fn handles_clock_changes() {
        // In Berlin, 02:00 on 29 March 2026 becomes 03:00, and 03:00 on 25 October 2026 becomes 02:00.
        let before_the_gap = "2026-03-28T23:00:00Z";
        let before_the_repeat = "2026-10-24T22:00:00Z";
        for (schedule, after, expected) in [
            // Once a day, in the gap: at the first moment after it, then as usual.
            (
                "30 2 * * *",
                before_the_gap,
                vec!["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
            ),
            (
                "0 30 2 * * *",
                before_the_gap,
                vec!["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
            ),
            (
                "0 2 * * *",
                before_the_gap,
                vec!["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"],
            ),
            (
                "0 3 * * *",
                before_the_gap,
                vec!["2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"],
            ),
            // Once a day, in the repeated hour: only the first time.
            (
                "30 2 * * *",
                before_the_repeat,
                vec!["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
            ),
            (
                "0 3 * * *",
                before_the_repeat,
                vec!["2026-10-25T02:00:00Z", "2026-10-26T02:00:00Z"],
            ),
            // Several times a day: follows the wall clock.
            (
                "0 * * * *",
                before_the_gap,
                vec![
                    "2026-03-29T00:00:00Z",
                    "2026-03-29T01:00:00Z",
                    "2026-03-29T02:00:00Z",
                ],
            ),
            (
                "30 1-3 * * *",
                before_the_gap,
                vec![
                    "2026-03-29T00:30:00Z",
                    "2026-03-29T01:30:00Z",
                    "2026-03-29T23:30:00Z",
                ],
            ),
            (
                "30 1-3 * * *",
                before_the_repeat,
                vec![
                    "2026-10-24T23:30:00Z",
                    "2026-10-25T00:30:00Z",
                    "2026-10-25T01:30:00Z",
                    "2026-10-25T02:30:00Z",
                    "2026-10-26T00:30:00Z",
                ],
            ),
            (
                "*/30 2 * * *",
                before_the_repeat,
                vec![
                    "2026-10-25T00:00:00Z",
                    "2026-10-25T00:30:00Z",
                    "2026-10-25T01:00:00Z",
                    "2026-10-25T01:30:00Z",
                    "2026-10-26T01:00:00Z",
                ],
            ),
        ] {
            assert_eq!(
                next(schedule, "Europe/Berlin", after, expected.len()),
                expected,
                "{schedule} after {after}"
            );
        }
        // A change of half an hour, on Lord Howe Island.
        assert_eq!(
            next("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", 2),
            ["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"]
        );
    }

    #[test]
    fn rejects_invalid_schedules_with_the_cause() {
        for (schedule, zone, label, part) in [
            ("", "UTC", "InvalidSchedule", "is empty"),
            ("* * * *", "UTC", "InvalidSchedule", "use five fields (minute"),
            (
                "* * * * * * *",
                "UTC",
                "InvalidSchedule",
                "use five fields (minute",
            ),
            ("60 * * * *", "UTC", "InvalidSchedule", "60"),
            ("* * * * FOO", "UTC", "InvalidSchedule", "use five fields (minute"),
            ("*/0 * * * *", "UTC", "InvalidSchedule", "use five fields (minute"),
            ("0 0 30 2 *", "UTC", "InvalidSchedule", "never occurs"),
            ("0 0 31 4,6 *", "UTC", "InvalidSchedule", "never occurs"),
            (
                "* * * * *",
                "Europe/Atlantis",
                "InvalidTimeZone",
                "Europe/Atlantis",
            ),
            ("* * * * *", "", "InvalidTimeZone", "IANA"),
        ] {
            let error = Schedule::parse(&cron(schedule, zone)).unwrap_err();
            assert_eq!(error.label(), label, "{schedule}: {error}");
            assert!(error.to_string().contains(part), "{schedule}: {error}");
        }
    }
}
