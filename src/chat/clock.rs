//! `strftime_now`: the time of this machine in the C locale.

use chrono::{Datelike, Local, Timelike};

use super::problem::{Problem, TemplateResult};

/// A local time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) year: i32,
    /// From 1.
    pub(super) month: u32,
    pub(super) day: u32,
    pub(super) day_of_year: u32,
    /// From Monday, 0.
    pub(super) weekday: u32,
    pub(super) hour: u32,
    pub(super) minute: u32,
    pub(super) second: u32,
    pub(super) microsecond: u32,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self::of(&Local::now().naive_local())
    }

    pub(super) fn of(time: &(impl Datelike + Timelike)) -> Self {
        Self {
            year: time.year(),
            month: time.month(),
            day: time.day(),
            day_of_year: time.ordinal(),
            weekday: time.weekday().num_days_from_monday(),
            hour: time.hour(),
            minute: time.minute(),
            second: time.second(),
            microsecond: time.nanosecond() / 1000 % 1_000_000,
        }
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// `datetime.strftime(format)`.
pub(super) fn strftime(format: &str, at: &Moment) -> TemplateResult<String> {
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(c) = characters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut field = characters.next();
        // The C library's flag against padding.
        let plain = field == Some('-');
        if plain {
            field = characters.next();
        }
        let Some(field) = field else {
            return Err(Problem::unsupported("strftime_now of a format that ends with '%'"));
        };
        out.push_str(&one(field, plain, at)?);
    }
    Ok(out)
}

fn one(field: char, plain: bool, at: &Moment) -> TemplateResult<String> {
    let (month, day) = (MONTHS[at.month as usize - 1], DAYS[at.weekday as usize]);
    let hour12 = (at.hour + 11) % 12 + 1;
    let half = if at.hour < 12 { "AM" } else { "PM" };
    let composed = |format: &str| strftime(format, at);
    let (number, width) = match field {
        'd' => (at.day, 2),
        'm' => (at.month, 2),
        'y' => (at.year.rem_euclid(100) as u32, 2),
        'H' => (at.hour, 2),
        'I' => (hour12, 2),
        'M' => (at.minute, 2),
        'S' => (at.second, 2),
        'j' => (at.day_of_year, 3),
        'u' => (at.weekday + 1, 1),
        'w' => ((at.weekday + 1) % 7, 1),
        'C' => (at.year.div_euclid(100) as u32, 2),
        'U' => ((at.day_of_year + 6 - (at.weekday + 1) % 7) / 7, 2),
        'W' => ((at.day_of_year + 6 - at.weekday) / 7, 2),
        'f' if !plain => return Ok(format!("{:06}", at.microsecond)),
        'Y' => return Ok(at.year.to_string()),
        'e' | 'k' | 'l' => {
            let value = match field {
                'e' => at.day,
                'k' => at.hour,
                _ => hour12,
            };
            return Ok(if plain { value.to_string() } else { format!("{value:2}") });
        }
        'B' if !plain => return Ok(month.into()),
        'b' | 'h' if !plain => return Ok(month[..3].into()),
        'A' if !plain => return Ok(day.into()),
        'a' if !plain => return Ok(day[..3].into()),
        'p' if !plain => return Ok(half.into()),
        // A naive time has no zone.
        'z' | 'Z' if !plain => return Ok(String::new()),
        'n' if !plain => return Ok("\n".into()),
        't' if !plain => return Ok("\t".into()),
        '%' if !plain => return Ok("%".into()),
        'F' if !plain => return composed("%Y-%m-%d"),
        'T' | 'X' if !plain => return composed("%H:%M:%S"),
        'R' if !plain => return composed("%H:%M"),
        'D' | 'x' if !plain => return composed("%m/%d/%y"),
        'c' if !plain => return composed("%a %b %e %H:%M:%S %Y"),
        'r' if !plain => return composed("%I:%M:%S %p"),
        other => {
            let flag = if plain { "-" } else { "" };
            return Err(Problem::unsupported(format!("strftime_now of %{flag}{other}")));
        }
    };
    Ok(if plain { number.to_string() } else { format!("{number:0width$}") })
}
