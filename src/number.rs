//! Numbers as messages show them.

use std::fmt::LowerExp;

/// Numbers from this one on, and below the second, are written with an exponent, as in Python.
const LARGE: f64 = 1e16;
const SMALL: f64 = 1e-4;

/// The shortest text that reads back as `value`. As Python's `repr`: "0.25", "1e-300", "1e+16", "nan"; but a whole number has
/// no point: "300".
pub(crate) fn number_text(value: impl LowerExp) -> String {
    // Has the fewest digits that `value` needs, also for a float32.
    let shortest = format!("{value:e}");
    let Ok(number) = shortest.parse::<f64>() else { return shortest };
    match shortest.split_once('e') {
        Some((digits, exponent)) if number != 0.0 && !(SMALL..LARGE).contains(&number.abs()) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |below| ('-', below));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        Some(_) => number.to_string(),
        // Not a number, or infinite.
        None => shortest.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::number_text;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (0.25, "0.25"),
            (-300.0, "-300"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e-4, "0.0001"),
            (9.9e-5, "9.9e-05"),
            (-1e-300, "-1e-300"),
            (5e-324, "5e-324"),
            (9_007_199_254_740_993.0, "9007199254740992"),
            (1e16, "1e+16"),
            (-1.5e30, "-1.5e+30"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(number_text(value), text);
            assert!(text == "nan" || text.parse() == Ok(value), "{text}");
        }
        for (value, text) in
            [(0.1_f32, "0.1"), (-1e-30, "-1e-30"), (f32::MAX, "3.4028235e+38"), (f32::NAN, "nan")]
        {
            assert_eq!(number_text(value), text);
        }
    }
}
