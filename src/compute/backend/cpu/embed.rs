//! The rows of embedding tables.

use super::device::Table;
use super::pass::CpuPass;
use super::states::{StateRows, States};
use crate::Result;
use crate::compute::backend::rows::{TableOf, check_scheme};
use crate::compute::backend::traits::Positions;
use crate::compute::isa::DType;
use crate::sync::Mutex;

impl CpuPass<'_> {
    pub(super) fn embed_rows(
        &mut self,
        words: &Table,
        positions: Option<(&Table, Positions)>,
        token_types: Option<&Table>,
    ) -> Result<States> {
        let scheme = positions.map_or(Positions::FromZero, |(_, scheme)| scheme);
        check_scheme(scheme, !self.caches.is_empty())?;
        let (positions, longest) =
            (positions.map(|(table, _)| table), positions.map(|(table, _)| table.rows()));
        let batch = self.batch;
        let fault = Mutex::new(None);
        let mut wide = self.workspace.matrix(batch.tokens(), words.columns(), DType::F32)?;
        let out = wide.target();
        self.parallelism.worth(batch.tokens() * words.columns()).split_rows(
            batch.sequences(),
            |sequences| {
                for index in sequences {
                    let (first, range) = (self.first_position(index), batch.range(index));
                    let second_type = batch.second_type(index);
                    let ids = &batch.ids[range.clone()];
                    for ((row, &id), position) in range.zip(ids).zip(scheme.of(ids)) {
                        let position = first + position;
                        let outside = match longest {
                            _ if id as usize >= words.rows() => {
                                Some(TableOf::Tokens.outside(id as usize, words.rows()))
                            }
                            Some(longest) if position >= longest => {
                                Some(TableOf::Positions.outside(position, longest))
                            }
                            _ => None,
                        };
                        if let Some(error) = outside {
                            *fault.lock() = Some(error);
                            return;
                        }
                        // SAFETY: each sequence belongs to one task, and each row to one sequence.
                        let out = unsafe { out.row_f32(row) };
                        let added = positions.map(|table| (table, position));
                        let mut added = added.into_iter().chain(token_types.map(|table| {
                            // A table of one row has one type for both texts of a pair.
                            (table, usize::from(row >= second_type && table.rows() > 1))
                        }));
                        let read = words
                            .row_f32(id as usize, out)
                            .and_then(|()| added.try_for_each(|(table, row)| table.add_row_f32(row, out)));
                        if let Err(error) = read {
                            *fault.lock() = Some(error);
                            return;
                        }
                    }
                }
            },
        )?;
        if let Some(error) = fault.into_inner() {
            self.workspace.give(wide);
            return Err(error);
        }
        Ok(StateRows::F32(wide).into())
    }
}
