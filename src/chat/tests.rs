use super::clock::{Moment, strftime};
use super::limits::{MAX_NESTING, MAX_SOURCE_BYTES};
use super::*;

fn render(source: &str) -> Result<String> {
    let tokens = vec![("eos_token".into(), Value::text("</s>"))];
    ChatTemplate::new("m", source, tokens).render(&Conversation::of(&[("user", "Merhaba <b>")])?)
}

fn refusal(source: &str) -> String {
    let error = render(source).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    error.to_string()
}

#[test]
fn a_conversation_is_rendered_as_trained() {
    let chatml = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
        '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    assert_eq!(render(chatml).unwrap(), "<|im_start|>user\nMerhaba <b><|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(render(TURNS_TEMPLATE).unwrap(), "Merhaba <b></s>");
}

/// As Python: a sigma knows where its word ends, and what has no case stays.
#[test]
fn cases_are_swapped() {
    for (source, expected) in [
        ("{{ 'ΑΣ ΣΑΣ Σ ας'.swapcase() }}", "ας σας σ ΑΣ"),
        ("{{ 'İIıi ß Ab1ǅ'.swapcase() }}", "i\u{307}iII SS aB1ǅ"),
    ] {
        assert_eq!(render(source).unwrap(), expected);
    }
}

#[test]
fn no_messages_are_no_chat() {
    let error = ChatTemplate::new("m", "x", Vec::new()).render(&Conversation::of(&[]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "messages is empty: a chat needs at least one");
}

#[test]
fn errors_name_the_cause_and_the_line() {
    let said = |source: &str| render(source).unwrap_err().to_string();
    assert_eq!(
        said("{% if true %}\n{{ raise_exception('start with a system message') }}{% endif %}"),
        "the chat template of \"m\" refuses these messages: start with a system message (line 2)"
    );
    assert_eq!(
        said("a\nb{% for %}"),
        "model \"m\" is not supported: its chat template does not parse: expected a name to assign to, got \
         the end of the statement block (line 2)"
    );
    assert_eq!(
        said("\n\n{{ 'a'|random }}"),
        "model \"m\" is not supported: its chat template uses the filter 'random' (line 3), which is not supported"
    );
    assert_eq!(
        said("{{ messages.x.y }}"),
        "the chat template of \"m\" refuses these messages: 'list object' has no attribute 'x' (line 1)"
    );
}

#[test]
fn long_work_is_stopped_by_steps() {
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let deep = format!("{}{{{{ 1 }}}}{}", "{% for a in range(9) %}".repeat(60), "{% endfor %}".repeat(60));
    let wide = "{% set ns = namespace(a=[1]) %}{% for i in range(70) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}";
    for source in [
        loops,
        &deep,
        wide,
        &wide.replace("{{ ns.a }}", "{{ ns.a == ns.a }}"),
        &wide.replace("ns.a }}", "ns.a|tojson }}"),
    ] {
        let said = refusal(source);
        assert!(said.contains("more than 4000000 steps"), "{said}");
    }
}

#[test]
fn large_values_are_stopped_before_they_are_made() {
    for source in [
        "{{ 'a' * 999999999999 }}",
        "{{ [1] * 999999999 }}",
        "{% set ns = namespace(a='aaaaaaaaaaaaaaaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
        "{% set ns = namespace(a='aaaaaaaaaaaaaaaaaaaaaaaaaaaaa') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
        "{% set a = 'ab' * 9999999 %}{{ a.replace('a', a) }}",
        "{% set a = 'ab' * 9999999 %}{{ a|replace('', a) }}",
        "{% set a = 'ab' * 9999999 %}{{ a|list }}",
        "{% set a = 'ab' * 9999 %}{{ a.join(a) }}",
        "{% set a = ('a\n' * 99999)|indent(99999) %}",
        "{{ range(9999)|list|tojson(indent=99999) }}",
        "{{ ('\t' * 99999).expandtabs(99999) }}",
    ] {
        let said = refusal(source);
        assert!(said.contains("makes more than 256 MiB of values"), "{source}: {said}");
    }
}

#[test]
fn work_on_long_texts_takes_steps() {
    let text = "{% set a = 'a' * 9999999 %}{% set d = {a: 1} %}{% for i in range(99999) %}";
    for each in [
        "{{ d[a] }}",
        "{{ d.get(a) }}",
        "{{ a in d }}",
        "{{ a is string and 'b' in a }}",
        "{{ {a: 1}|length }}",
        "{{ a|length }}",
        "{% set x = d|attr(a) %}",
    ] {
        let said = refusal(&format!("{text}{each}{{% endfor %}}"));
        assert!(
            said.contains("more than 4000000 steps") || said.contains("more than 256 MiB"),
            "{each}: {said}"
        );
    }
    for source in [
        "{% set a = 'ab' * 9999999 %}{% set b = a.strip(a) %}{{ b|length }}{{ a.split('a')|length }}",
        "{% set a = 'ab' * 9999999 %}{{ a.split('b')|length }}",
        "{% set a = 'a ' * 9999999 %}{{ a.split()|length }}",
        "{% set a = 'a\n' * 9999999 %}{{ a.splitlines()|length }}",
        "{% set a = 'a' * 9999999 %}{{ ([a] * 99999)|unique(true)|list|length }}",
        "{% set ns = namespace(a=(1, 2)) %}{% for i in range(70) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} }}",
        "{% for i in range(99999) %}{{ '%.1000f' % 0.1 }}{% endfor %}",
    ] {
        refusal(source);
    }
}

#[test]
fn widths_and_counts_are_bounded() {
    for source in [
        "{{ 'a'|indent(1000000000) }}",
        "{{ [1]|tojson(indent=1000000000) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:.999999999f}'.format(1.0) }}",
        "{{ '%999999999d'|format(1) }}",
        "{{ [1]|batch(1000000000, 0)|list }}",
        "{{ [1]|slice(1000000000)|list }}",
        "{{ 'a b'|wordwrap(1000000000) }}",
    ] {
        let said = refusal(source);
        assert!(said.contains("of more than 100000"), "{source}: {said}");
    }
    assert!(refusal("{{ range(1000000000) }}").contains("a range of more than 100000 elements"));
    let far = "{{ range(0, 4, 2)[::170141183460469231731687303715884105727] | list }}";
    assert!(refusal(far).contains("an integer of more than 127 bits"));
}

#[test]
fn nesting_is_bounded_when_it_is_parsed() {
    let many = |part: &str| part.repeat(50_000);
    for source in [
        format!("{{{{ {}1 }}}}", many("not ")),
        format!("{{{{ {}1 }}}}", many("-")),
        format!("{{{{ {}1{} }}}}", many("("), many(")")),
        format!("{{{{ {}1{} }}}}", many("["), many("]")),
        format!("{{{{ {}1{} }}}}", many("{1:"), many("}")),
        format!("{{{{ 1{} }}}}", many("|upper")),
        format!("{{{{ 1{} }}}}", many(" + 1")),
        format!("{{{{ 1{} }}}}", many(" and 1")),
        format!("{{{{ 1{} }}}}", many(".a")),
        format!("{{{{ 1{} }}}}", many("[0]")),
        format!("{{{{ 1{} }}}}", many("()")),
        format!("{{{{ 1{} }}}}", many(" if 1 else 1")),
        format!("{{% set {}a{} = 1 %}}", many("("), many(")")),
        many("{% if 1 %}"),
        many("{% for a in b %}"),
        format!("{{% filter upper{} %}}{{% endfilter %}}", many("|upper")),
    ] {
        let said = refusal(&source);
        assert!(
            said.contains(&format!("nests more than {MAX_NESTING} levels deep")),
            "{}: {said}",
            &source[..20]
        );
    }
    let macros = many("{% macro a() %}");
    assert!(refusal(&macros).contains("nests macros more than 20 levels deep"));
    assert!(refusal(&format!("{{{{ {} }}}}", many("a"))).contains("a name of more than 1000 bytes"));
    let named: String = (0..2000).map(|i| format!("a{i}=1,")).collect();
    assert!(refusal(&format!("{{{{ f({named}) }}}}")).contains("more than 1000 arguments"));
    assert!(refusal(&" ".repeat(MAX_SOURCE_BYTES + 1)).contains("its source is longer than"));
}

#[test]
fn calls_and_values_nest_to_a_bound() {
    assert!(
        refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("more than 1000 levels deep")
    );
    let call = "{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}";
    assert!(render(call).is_err());
    assert!(
        refusal("{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}")
            .contains("more than 1000 levels deep")
    );
    let deep = "{% set ns = namespace(a=1) %}{% for i in range(9999) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}";
    assert!(refusal(deep).contains("nests values more than 128 levels deep"));
    // A namespace that holds itself is freed with the rendering.
    assert_eq!(
        render("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a.a is defined }}").unwrap(),
        "True"
    );
}

#[test]
fn output_is_bounded() {
    let said = refusal("{% set a = 'a' * 9999999 %}{% for i in range(9) %}{{ a }}{% endfor %}");
    assert!(said.contains("writes more than 16 MiB"), "{said}");
}

#[test]
fn branches_of_many_names_are_bounded() {
    let source: String =
        (0..6000).map(|i| format!("{{% if a{i} %}}{{% set b{i} = 1 %}}{{% endif %}}")).collect();
    assert!(refusal(&source).contains("its branches name more than"));
}

#[test]
fn a_template_at_the_deepest_nesting_renders() {
    let depth = MAX_NESTING / 2;
    let source = format!(
        "{}{{{{ {}1{} }}}}{}",
        "{% if 1 %}".repeat(depth),
        "[".repeat(depth - 5),
        "]".repeat(depth - 5),
        "{% endif %}".repeat(depth)
    );
    assert!(render(&source).unwrap().starts_with("[[[["));
}

#[test]
fn dates_are_those_of_python() {
    let at = Moment {
        year: 2000,
        month: 2,
        day: 9,
        day_of_year: 40,
        weekday: 2,
        hour: 1,
        minute: 2,
        second: 3,
        microsecond: 4,
    };
    assert_eq!(
        strftime("%A %d %B %Y %b %a %y-%m-%d %H:%M:%S %% %-d %-m %e %j %I %p %f %U %W %u %w", &at).unwrap(),
        "Wednesday 09 February 2000 Feb Wed 00-02-09 01:02:03 % 9 2  9 040 01 AM 000004 06 06 3 3"
    );
    assert!(strftime("%Q", &at).unwrap_err().message.contains("%Q"));
}

fn reads(source: &str) -> String {
    let template = ChatTemplate::new("m", source, Vec::new());
    template.body.as_ref().unwrap();
    template.reads().join(" ")
}

#[test]
fn the_variables_that_a_template_reads() {
    for (source, expected) in [
        ("{{ messages[0].content }}{{ bos_token }}{% if add_generation_prompt %}a{% endif %}", ""),
        ("{{ enable_thinking }}", "enable_thinking"),
        ("{% if enable_thinking is defined and enable_thinking is false %}a{% endif %}", "enable_thinking"),
        ("{% if a is not defined %}{% set a = true %}{% endif %}{{ a }}", "a"),
        ("{% set a = 1 %}{{ a }}", ""),
        ("{% set a = a %}{{ a }}", "a"),
        ("{{ a }}{% set a = 1 %}", "a"),
        ("{% if b %}{% set a = 1 %}{% else %}{% set a = 2 %}{% endif %}{{ a }}", "b"),
        ("{% if b %}{% set a = 1 %}{% elif c %}{% set a = 2 %}{% endif %}{{ a }}", "a b c"),
        ("{% if b %}{% set a = 1 %}{{ a }}{% endif %}", "b"),
        ("{% if b %}{% else %}{{ a }}{% endif %}", "a b"),
        (
            "{% for m in messages if m.x and flag %}{{ m }}{{ loop.index }}{{ other }}{% else %}{{ m }}{% endfor %}",
            "flag m other",
        ),
        ("{% for a, (b, c) in x %}{{ a }}{{ b }}{{ c }}{% endfor %}", "x"),
        ("{% for i in x %}{{ a }}{% set a = i %}{% endfor %}{{ b }}", "a b x"),
        ("{% set a = 1 %}{% for i in [1] %}{% set a = 2 %}{{ a }}{% endfor %}", ""),
        ("{% with a = b %}{{ a }}{{ c }}{% endwith %}{{ a }}", "a b c"),
        (
            "{% macro f(x, y=z) %}{{ x }}{{ y }}{{ w }}{{ caller() }}{{ varargs }}{% endmacro %}{{ f(v) }}",
            "v w z",
        ),
        ("{% macro f() %}{{ a }}{% endmacro %}{% set a = 1 %}{{ f() }}", ""),
        ("{% call(x) f(y) %}{{ x }}{{ z }}{% endcall %}", "f y z"),
        (
            "{% filter trim(a) %}{{ b }}{% endfilter %}{% set c | replace(d, e) %}{{ g }}{% endset %}{{ c }}",
            "a b d e g",
        ),
        (
            "{% set ns = namespace(a=b) %}{% set ns.a = c %}{{ ns.a }}{{ range(1) }}{{ raise_exception }}",
            "b c",
        ),
        ("{% generation %}{{ a }}{% endgeneration %}{% block b %}{{ c }}{% endblock %}{{ self.b() }}", "a c"),
        (
            "{{ a[b:c] if d else {e: [g, (h,)]} }}{{ i is divisibleby(j) }}{{ k | default(l) }}",
            "a b c d e g h i j k l",
        ),
        ("{{ 'enable_thinking' }}{{ messages.enable_thinking }}{# enable_thinking #}", ""),
    ] {
        assert_eq!(reads(source), expected, "{source}");
    }
}

#[test]
fn variables_that_a_template_does_not_read_are_refused() {
    let check = |source: &str, name: &str| {
        ChatTemplate::new("m", source, Vec::new()).check_variables(&[(name.into(), Value::Bool(true))])
    };
    assert_eq!(check("{{ tools }}{{ thinking }}", "thinking"), Ok(()));
    assert_eq!(
        check("{{ tools }}{{ thinking }}", "enable_thinking").unwrap_err().to_string(),
        "chat_template_kwargs has \"enable_thinking\", which the chat template of \"m\" does not read: leave it out; it \
         reads thinking, tools"
    );
    let said = check("{{ messages }}", &"a".repeat(999)).unwrap_err().to_string();
    assert!(said.ends_with("leave it out; it reads no variable that a caller may set"), "{said}");
    assert!(said.len() < 300);
    assert!(check("{% for %}", "a").unwrap_err().to_string().contains("does not parse"));
    assert_eq!(ChatTemplate::new("m", "{{ messages }}", Vec::new()).check_variables(&[]), Ok(()));
}

#[test]
fn templates_of_models_that_think() {
    let thinks = |source: &str| ChatTemplate::new("m", source, Vec::new()).thinks();
    assert!(thinks("{{ enable_thinking }}"));
    assert!(thinks("{{ '<think>\\n' }}"));
    assert!(thinks("{{ messages[0].content.split('</think>')[-1] }}"));
    assert!(!thinks("{{ messages }}{{ think }}"));
}
