//! A look at a model before it is downloaded.

use super::*;

/// The `config.json` of a small BERT.
const BERT: &[u8] = br#"{"model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "type_vocab_size": 2,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "torch_dtype": "float16"}"#;

#[test]
fn a_look_at_a_model_downloads_its_small_files_alone() {
    let content = weights();
    let mut files = model(&content);
    for file in &mut files {
        match file.0 {
            "config.json" => file.1 = BERT,
            "1_Pooling/config.json" => file.1 = br#"{"pooling_mode_mean_tokens": true}"#,
            "tokenizer_config.json" => file.1 = br#"{"tokenizer_class": "BertTokenizer"}"#,
            _ => {}
        }
    }
    let hub = Hub::new(&files);
    let setup = Setup::new(&hub);
    let inspect = |setup: &Setup, kind| {
        let options = ResolveOptions::new(Arc::new(Environment(setup.environment.clone())));
        Inspected::of(&Source::parse("org/model").unwrap(), &options, kind, &mut |_| Ok(()))
    };
    let found = inspect(&setup, None).unwrap().model().unwrap();
    assert_eq!((found.kind, found.local), (ModelKind::Embedding, false));
    assert_eq!(found.config.family.model_type, "bert");
    assert_eq!(found.tokenizer.as_deref(), Some("BertTokenizer"));
    assert_eq!(found.stored.as_deref(), Some("float16"));
    assert_eq!(found.weight_bytes, Some(content.len() as u64));
    assert_eq!(found.parameters(), Some(content.len() as u64 / 2));
    for large in ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt"] {
        assert_eq!(hub.gets(large).len(), 0, "{large}");
    }
    assert_eq!(hub.gets("modules.json").len(), 1);
    // What was not downloaded is: the look left no half of a model behind.
    setup.resolve().unwrap();
    assert_ne!(hub.gets("model.safetensors").len(), 0);
    // Now the headers of the weights are there too, and these are no safetensors.
    let error = inspect(&setup, None).unwrap_err();
    assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
    // Why it does not run, and why nothing is known.
    let error = inspect(&setup, Some(ModelKind::Generator)).unwrap_err().to_string();
    assert!(error.contains("\"bert\""), "{error}");
    let mut offline = Setup::new(&hub);
    offline.set("HF_HUB_OFFLINE", "1");
    let error = inspect(&offline, None).unwrap_err();
    assert!(matches!(error, Error::ModelNotFound { .. }), "{error}");
}
