//! The core's reports as dictionaries; their shapes are in `_types.py`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{adaptive, caching, tracker};
use crate::cache::CacheStatistics;
use crate::config::Settings;
use crate::generation::Completion;
use crate::manager::{
    CardReport, GenerationReport, GeneratorDescription, ManagerStatistics, ModelDescription, QueueReport,
    SlotReport,
};
use crate::remote::{Circuit, HealthReport};

/// A dictionary of the pairs given.
macro_rules! dict {
    ($py:expr, { $($key:literal: $value:expr,)+ }) => {{
        let dict = PyDict::new($py);
        $(dict.set_item($key, $value)?;)+
        dict
    }};
}

pub(super) fn cache<'py>(
    py: Python<'py>,
    all: &ManagerStatistics,
    settings: &Settings,
) -> PyResult<Bound<'py, PyDict>> {
    use crate::config::Choice;
    let statistics = &all.cache;
    let CacheStatistics { counts, totals, .. } = statistics;
    Ok(dict!(py, {
        "policy": settings.cache_policy.as_str(),
        "hits": counts.hits,
        "misses": counts.misses,
        "insertions": counts.insertions,
        "evictions": counts.evictions,
        "expirations": counts.expirations,
        "pinned": statistics.pinned,
        "rejections": counts.rejections,
        "entries": statistics.entries,
        "bytes": statistics.bytes,
        "max_entries": statistics.max_entries,
        "max_bytes": statistics.max_bytes,
        "totals": dict!(py, {
            "hits": totals.hits,
            "misses": totals.misses,
            "insertions": totals.insertions,
            "evictions": totals.evictions,
            "expirations": totals.expirations,
            "rejections": totals.rejections,
        }),
        "tiers": caching::tiers(py, &all.tiers)?,
        "models": caching::models(py, all)?,
    }))
}

pub(super) fn description<'py>(py: Python<'py>, model: &ModelDescription) -> PyResult<Bound<'py, PyDict>> {
    let prompts = PyDict::new(py);
    for (name, prompt) in &model.prompts {
        prompts.set_item(name, prompt)?;
    }
    Ok(dict!(py, {
        "name": &model.name,
        "profile": model.profile,
        "source": &model.source,
        "adapter": &model.adapter,
        "adapter_content": &model.adapter_content,
        "path": &model.path,
        "architecture": &model.architecture,
        "engine": model.engine,
        "dimension": model.dimension,
        "sparse_dimension": model.sparse_dimension,
        "tasks": &model.tasks,
        "labels": &model.labels,
        // A static model may read texts of any length.
        "max_length": model.max_length.filter(|&tokens| tokens != usize::MAX),
        "pooling": &model.pooling,
        "chat_template": model.chat_template,
        "normalizes": model.normalizes,
        "similarity": &model.similarity,
        "prompts": prompts,
        "default_prompt_name": &model.default_prompt_name,
        "dtype": &model.dtype,
        "file_type": model.file_type,
        "bytes": model.bytes,
        "device": &model.device,
        "device_bytes": model.device_bytes,
    }))
}

/// One line about a manager: the states of its slots, the cache.
pub(super) fn summary(class: &str, all: &ManagerStatistics) -> String {
    let slots: Vec<_> = all.slots.iter().map(|slot| format!("{}: {}", slot.name, slot.state)).collect();
    format!("<{class} {} | cache {}/{}>", slots.join(", "), all.cache.entries, all.cache.max_entries)
}

fn slot<'py>(py: Python<'py>, slot: &SlotReport) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, {
        "state": slot.state,
        "source": &slot.source,
        "adapter": &slot.adapter,
        "kind": slot.kind,
        "kind_known": slot.kind_known,
        "pinned": slot.pinned,
        "keep_alive": slot.keep_alive.map(|keep| keep.as_secs_f64()),
        "bytes": slot.bytes,
        "device_bytes": slot.device_bytes,
        "leases": slot.leases,
        "idle_seconds": slot.idle.map(|idle| idle.as_secs_f64()),
        "unload_in_seconds": slot.unload_in.map(|left| left.as_secs_f64()),
        "queued": slot.queued,
        "truncated": slot.truncated,
        "last_error": &slot.last_error,
        "generation": slot.generation.as_ref().map(|report| generation(py, report)).transpose()?,
        "remote": slot.remote.as_ref().map(|health| remote(py, health)).transpose()?,
    }))
}

fn remote<'py>(py: Python<'py>, health: &HealthReport) -> PyResult<Bound<'py, PyDict>> {
    let rest = match health.circuit {
        Circuit::Open(rest) => Some(rest.as_secs_f64()),
        Circuit::Closed | Circuit::HalfOpen => None,
    };
    Ok(dict!(py, {
        "requests": health.requests,
        "retries": health.retries,
        "errors": health.errors,
        "circuit": health.circuit.name(),
        "retry_seconds": rest,
    }))
}

fn generation<'py>(py: Python<'py>, report: &GenerationReport) -> PyResult<Bound<'py, PyDict>> {
    let GenerationReport { totals, state } = report;
    Ok(dict!(py, {
        "requests": totals.requests,
        "completed": totals.completed,
        "cancelled": totals.cancelled,
        "failed": totals.failed,
        "prompt_tokens": totals.prompt_tokens,
        "reused_tokens": totals.reused_tokens,
        "paused": totals.paused,
        "generated_tokens": totals.generated_tokens,
        "drafted_tokens": totals.drafted_tokens,
        "accepted_tokens": totals.accepted_tokens,
        "busy_seconds": totals.busy.as_secs_f64(),
        "active": state.active,
        "waiting": state.waiting,
        "kv_bytes": state.kv_bytes,
        "prefix_bytes": state.prefix_bytes,
        "kv_limit": state.kv_limit,
    }))
}

pub(super) fn generator<'py>(
    py: Python<'py>,
    generator: &GeneratorDescription,
) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, {
        "name": &generator.name,
        "source": &generator.source,
        "adapter": &generator.adapter,
        "path": &generator.path,
        "architecture": &generator.architecture,
        "engine": generator.engine,
        "dtype": generator.dtype,
        "file_type": generator.file_type,
        "context": generator.context,
        "eos_token_id": generator.eos.as_ref().map(|(id, _)| id),
        "eos_token_ids": &generator.eos_ids,
        "eos_token": generator.eos.as_ref().and_then(|(_, text)| text.as_ref()),
        "chat_template": generator.chat_template,
        "chat_template_variables": &generator.chat_template_variables,
        "thinks": generator.thinks,
        "bytes": generator.bytes,
        "device_bytes": generator.device_bytes,
        "kv_bytes_per_token": generator.kv_bytes_per_token,
        "kv_limit": generator.kv_limit,
        "max_parallel": generator.max_parallel,
    }))
}

pub(super) fn completion<'py>(py: Python<'py>, completion: &Completion) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, {
        "text": &completion.text,
        "tokens": &completion.tokens,
        "finish_reason": completion.reason.as_str(),
        "prompt_tokens": completion.prompt_tokens,
        "reused_tokens": completion.reused_tokens,
        "drafted_tokens": completion.drafted_tokens,
        "accepted_tokens": completion.accepted_tokens,
        "completion_tokens": completion.tokens.len(),
        "seed": completion.seed,
        "queued_seconds": completion.queued.as_secs_f64(),
        "prefill_seconds": completion.prefill.as_secs_f64(),
        "decode_seconds": completion.decode.as_secs_f64(),
        "tokens_per_second": completion.tokens_per_second(),
    }))
}

fn queue<'py>(py: Python<'py>, queue: &QueueReport) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, {
        "queued": queue.queued,
        "max_queue": queue.max_queue,
        "requests": queue.requests,
        "rejected": queue.rejected,
        "texts": queue.work.sequences,
        "tokens": queue.work.tokens,
        "batches": queue.work.batches,
        "shared": queue.work.shared,
        "cancelled": queue.work.abandoned,
        "failed_batches": queue.work.failed,
    }))
}

fn card<'py>(py: Python<'py>, card: &CardReport) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, {
        "name": &card.name,
        "models": card.models,
        "budget": card.budget,
        "free": card.free,
        "total": card.total,
    }))
}

pub(super) fn manager<'py>(
    py: Python<'py>,
    all: ManagerStatistics,
    settings: &Settings,
    device: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let slots = PyDict::new(py);
    for report in &all.slots {
        slots.set_item(&report.name, slot(py, report)?)?;
    }
    let cache = cache(py, &all, settings)?;
    let adaptive = adaptive::statistics(py, &all)?;
    let memory = dict!(py, {
        "resident": all.resident,
        "models": all.models,
        "kv": all.kv,
        "budget": all.budget,
        "device": all.card.as_ref().map(|report| card(py, report)).transpose()?,
    });
    Ok(dict!(py, {
        "slots": slots,
        "tracker": tracker::statistics(py, all.tracker)?,
        "cache": cache,
        "adaptive": adaptive,
        "queue": queue(py, &all.queue)?,
        "memory": memory,
        "threads": all.threads,
        "isa": all.isa,
        "device": device,
        "last_cleanup_seconds": all.since_clean_up.as_secs_f64(),
    }))
}
