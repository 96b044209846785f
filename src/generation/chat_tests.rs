use super::*;

/// As ChatML models (SmolLM2, Qwen2) spell it.
const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn render(source: &str, messages: &[Message]) -> Result<String> {
    ChatTemplate::new("m", source, "<s>", "</s>")?.render(messages)
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

#[test]
fn chatml_is_rendered_as_trained() {
    assert_eq!(
        render(CHATML, &user("Merhaba <b>")).unwrap(),
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nMerhaba <b><|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn turns_end_with_end_of_text() {
    let turns = [Message::new("user", "Hi"), Message::new("assistant", "Hello"), Message::new("user", "Bye")];
    assert_eq!(render(TURNS_TEMPLATE, &turns).unwrap(), "Hi</s>Hello</s>Bye</s>");
}

#[test]
fn blocks_are_trimmed_as_transformers_does() {
    let source = "{% for message in messages %}\n    {% if true %}\n{{ message.content }}\n    {% endif %}\n{% endfor %}\nend";
    assert_eq!(render(source, &user("a")).unwrap(), "a\nend");
}

#[test]
fn python_methods_and_loop_controls_work() {
    let source = "{% for m in messages %}{% if m.content.startswith('x') %}{% break %}{% endif %}\
        {{ m['content'].strip() | upper }}|{{ m.content.split(',')[-1] }}{% endfor %}{{ bos_token }}";
    let messages = [Message::new("user", " a,b "), Message::new("user", "x"), Message::new("user", "never")];
    assert_eq!(render(source, &messages).unwrap(), "A,B|b <s>");
}

#[test]
fn json_is_pythons() {
    let source = "{{ messages[0] | tojson }}{{ {'a': [1, 2]} | tojson(indent=2) }}";
    assert_eq!(
        render(source, &user("<ş>'")).unwrap(),
        "{\"role\": \"user\", \"content\": \"<ş>'\"}{\n  \"a\": [\n    1,\n    2\n  ]\n}"
    );
}

#[test]
fn the_templates_own_refusal_is_told() {
    let source = "{% if messages[0].role != 'system' %}\n{{ raise_exception('start with a system message') }}{% endif %}";
    assert_eq!(
        render(source, &user("x")).unwrap_err().to_string(),
        "the chat template of \"m\" refuses these messages: start with a system message (line 2)"
    );
    assert_eq!(render(CHATML, &[]).unwrap_err().to_string(), "messages is empty: a chat needs at least one");
}

#[test]
fn a_template_that_does_not_parse_is_named() {
    let error = render("{% for %}", &user("x")).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { model, .. } if model == "m"));
    assert!(error.to_string().contains("chat template does not parse"), "{error}");
}

#[test]
fn training_marks_print_what_they_hold() {
    assert_eq!(
        render("{%- generation -%}{{ messages[0].content }}{%- endgeneration -%}", &user("x")).unwrap(),
        "x"
    );
}

#[test]
fn dates_are_gregorian() {
    let date = |now| strftime("%A %d %B %Y %b %a %y-%m-%d %H:%M:%S %%", now).unwrap();
    assert_eq!(date(0), "Thursday 01 January 1970 Jan Thu 70-01-01 00:00:00 %");
    assert_eq!(date(951_782_400 + 3661), "Tuesday 29 February 2000 Feb Tue 00-02-29 01:01:01 %");
    assert_eq!(date(1_767_225_599), "Wednesday 31 December 2025 Dec Wed 25-12-31 23:59:59 %");
    assert!(strftime("%Q", 0).unwrap_err().to_string().contains("%Q"));
}
