//! Loading a model on a card: in which format, and what happens when the card's memory is full.

use std::sync::Arc;

use candle_core::Device;

use super::memory::relieve;
use super::registry::NamedSlots;
use crate::compute::{CandleDevice, Isa, Relief, WeightFormat, cards};
use crate::config::{Choice as _, DTypeChoice};
use crate::{Error, Result};

/// How weights are held, on a card if there is one: there, in float32 or bfloat16.
///
/// # Errors
/// [`Error::Config`] for a format that a card does not hold.
pub(super) fn weight_format(choice: DTypeChoice, isa: Isa, card: Option<&Device>) -> Result<WeightFormat> {
    Ok(match (card, choice) {
        (None, choice) => choice.weight_format(isa),
        (Some(device), DTypeChoice::Auto) if device.is_cuda() => WeightFormat::Bf16,
        // float32 is exact; how much faster bfloat16 is on other cards was not measured.
        (Some(_), DTypeChoice::Auto | DTypeChoice::Float32) => WeightFormat::F32,
        (Some(_), DTypeChoice::Bfloat16) => WeightFormat::Bf16,
        (Some(device), DTypeChoice::Float16 | DTypeChoice::Int8 | DTypeChoice::Int4) => {
            let name = cards::name(device);
            return Err(Error::Config {
                setting: "dtype".into(),
                value: choice.as_str().into(),
                reason: format!(
                    "on {name} weights are float32 or bfloat16; use one of them, or device=\"cpu\""
                ),
            });
        }
    })
}

/// The same for a model that writes text. On a CPU `auto` is bfloat16, native or not: each token of an answer reads all
/// weights, so half the bytes are worth more than faster products.
///
/// # Errors
/// As [`weight_format`].
pub(super) fn generator_format(choice: DTypeChoice, isa: Isa, card: Option<&Device>) -> Result<WeightFormat> {
    match (card, choice) {
        (None, DTypeChoice::Auto) => Ok(WeightFormat::Bf16),
        _ => weight_format(choice, isa, card),
    }
}

/// Loads the model of `name` on a card. If it lacks memory, idle models of the card are unloaded, one after the other.
pub(super) fn on_card<M>(
    device: &Device,
    entries: &Arc<NamedSlots>,
    name: &str,
    format: WeightFormat,
    expected: u64,
    load: impl Fn(&CandleDevice) -> Result<M>,
) -> Result<M> {
    let (weak, own) = (Arc::downgrade(entries), name.to_owned());
    let relief = move || weak.upgrade().is_some_and(|entries| relieve(&entries, &own));
    let bf16 = format == WeightFormat::Bf16;
    let relief = Some(Relief(Arc::new(relief)));
    let on = CandleDevice { bf16, relief, ..device.clone().into() };
    loop {
        match load(&on) {
            Err(Error::DeviceMemory { .. }) if relieve(entries, name) => {}
            Err(Error::DeviceMemory { device, free, .. }) => {
                let what = format!("the weights of {name:?}");
                return Err(on.described(Error::DeviceMemory { device, what, needed: Some(expected), free }));
            }
            loaded => return loaded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_holds_float32_or_bfloat16() {
        let card = Some(&Device::Cpu);
        for (choice, expected) in [
            (DTypeChoice::Auto, WeightFormat::F32),
            (DTypeChoice::Float32, WeightFormat::F32),
            (DTypeChoice::Bfloat16, WeightFormat::Bf16),
        ] {
            assert_eq!(weight_format(choice, Isa::best(), card), Ok(expected));
        }
        for choice in [DTypeChoice::Float16, DTypeChoice::Int8, DTypeChoice::Int4] {
            let error = weight_format(choice, Isa::best(), card).unwrap_err().to_string();
            assert!(error.contains("bfloat16") && error.contains(choice.as_str()), "{error}");
            assert_eq!(weight_format(choice, Isa::best(), None), Ok(choice.weight_format(Isa::best())));
        }
    }

    #[test]
    fn a_generator_is_held_in_bfloat16_on_every_cpu() {
        let isa = Isa::Portable;
        assert_eq!(generator_format(DTypeChoice::Auto, isa, None), Ok(WeightFormat::Bf16));
        assert_eq!(weight_format(DTypeChoice::Auto, isa, None), Ok(WeightFormat::F32));
        assert_eq!(generator_format(DTypeChoice::Float32, isa, None), Ok(WeightFormat::F32));
        assert_eq!(generator_format(DTypeChoice::Int4, isa, None), Ok(WeightFormat::Int4));
        assert_eq!(generator_format(DTypeChoice::Auto, isa, Some(&Device::Cpu)), Ok(WeightFormat::F32));
    }
}
