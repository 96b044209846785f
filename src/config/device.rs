//! The setting `device`.

use super::value::{Setting, SettingValue};

/// Where models compute, as a person chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// A card with memory to spare, if this build supports one and this machine has it; else the CPU.
    Auto,
    /// This crate's own kernels.
    Cpu,
    /// NVIDIA: the card of this number, by default the first.
    Cuda(Option<usize>),
    /// Apple, through candle.
    Metal,
    /// The operations of a card on the CPU, for tests.
    CandleCpu,
}

const ALLOWED: &str = "must be \"auto\", \"cpu\", \"cuda\" or \"cuda:N\" for NVIDIA's card N from 0, \"metal\" (or \"mps\"), or \
                       \"candle-cpu\" (what a card computes, on the CPU, for tests)";

impl Setting for DeviceChoice {
    type Held = Self;

    fn annotation() -> String {
        "str".into()
    }

    fn from_value(value: &SettingValue) -> Result<Self, String> {
        let SettingValue::Text(text) = value else { return Err(ALLOWED.into()) };
        let text = text.trim().to_ascii_lowercase();
        let (word, number) = match text.split_once(':') {
            Some((word, number)) => (word, Some(number)),
            None => (text.as_str(), None),
        };
        let digits = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match (word, number) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("cuda", None) => Ok(Self::Cuda(None)),
            ("cuda", Some(number)) if digits(number) => {
                number.parse().map(|ordinal| Self::Cuda(Some(ordinal))).map_err(|_| ALLOWED.into())
            }
            // Apple's machines have one card, whose number PyTorch accepts.
            ("metal" | "mps", None | Some("0")) => Ok(Self::Metal),
            ("candle-cpu", None) => Ok(Self::CandleCpu),
            _ => Err(ALLOWED.into()),
        }
    }

    fn to_value(held: &Self) -> SettingValue {
        SettingValue::Text(held.to_string())
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(ordinal)) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("mps"),
            Self::CandleCpu => f.write_str("candle-cpu"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name_and_number() {
        for (text, expected) in [
            ("auto", DeviceChoice::Auto),
            ("CPU", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(None)),
            (" Cuda:1 ", DeviceChoice::Cuda(Some(1))),
            ("mps", DeviceChoice::Metal),
            ("metal", DeviceChoice::Metal),
            ("mps:0", DeviceChoice::Metal),
            ("candle-cpu", DeviceChoice::CandleCpu),
        ] {
            let choice = DeviceChoice::from_text(text);
            assert_eq!(choice, Ok(expected), "{text}");
            assert_eq!(DeviceChoice::from_value(&DeviceChoice::to_value(&expected)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_wrong_name_is_refused_with_what_is_allowed() {
        for text in [
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:one",
            "cuda:99999999999999999999",
            "cpu:0",
            "mps:1",
            "cuda 1",
            "",
        ] {
            let reason = DeviceChoice::from_text(text).unwrap_err();
            assert!(reason.contains("cuda:N"), "{text}: {reason}");
        }
    }
}
