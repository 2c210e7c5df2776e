//! The page of `GET /docs`, made from `openapi.json`: routes, Socket.IO events, schemas. It holds
//! no script and loads nothing. Writing to memory cannot fail, so the results of `write!` are dropped.

use std::fmt::Write;

use crate::http::openapi::ordered_json::Json;

const STYLE: &str = include_str!("docs.css");
/// Where `cargo up` serves; the lines to copy work as they stand.
const SERVER: &str = "http://localhost:4000";
/// What sockets speak, an extension of the document.
const EVENTS: &str = "x-socket-io";

pub fn render(document: &Json) -> String {
    let mut page = String::new();
    let info = &document["info"];
    let title = escape(info["title"].text());
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8>\
        <meta name=viewport content=\"width=device-width,initial-scale=1\"><title>{title}</title>\
        <style>{STYLE}</style><header><h1>{title} <small>{}</small></h1>{}</header>",
        escape(info["version"].text()),
        prose(&info["description"])
    );
    contents(&mut page, document);
    page.push_str("<main><h2 class=part id=routes>HTTP</h2>");
    for one in operations(document) {
        operation(&mut page, document, &one);
    }
    events(&mut page, document);
    schemas(&mut page, document);
    page.push_str("</main>");
    page
}

/// A method on a path.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    what: &'a Json,
}

fn operations<'a>(document: &'a Json) -> impl Iterator<Item = Operation<'a>> {
    let of_path = |(path, methods): (&'a str, &'a Json)| {
        methods.entries().map(move |(method, what)| Operation { method, path, what })
    };
    document["paths"].entries().flat_map(of_path)
}

fn contents(page: &mut String, document: &Json) {
    page.push_str("<nav><h2><a href=#routes>HTTP</a></h2><ul>");
    for Operation { method, path, what } in operations(document) {
        let _ = write!(
            page,
            "<li><a href=\"#{}\"><b class=\"tag {method}\">{method}</b> <code>{}</code></a> <span>{}</span>",
            escape(what["operationId"].text()),
            broken(path),
            inline(what["summary"].text())
        );
    }
    page.push_str("</ul><h2><a href=#events>Socket.IO</a></h2><ul>");
    for (direction, name, event) in all_events(document) {
        let _ = write!(
            page,
            "<li><a href=\"#{0}-{1}\"><b class=\"tag {0}\">{0}</b> <code>{1}</code></a> <span>{2}</span>",
            direction,
            escape(name),
            inline(event["summary"].text())
        );
    }
    page.push_str(
        "</ul><p><a href=#codes>Errors</a> · <a href=#schemas>Schemas</a> · for programs: \
        <a href=/openapi.json>/openapi.json</a>, <a href=/asyncapi.json>/asyncapi.json</a></nav>",
    );
}

fn operation(page: &mut String, document: &Json, Operation { method, path, what }: &Operation<'_>) {
    let _ = write!(
        page,
        "<section id=\"{}\"><h3><b class=\"tag {method}\">{method}</b> <code>{}</code></h3><p class=lead>{}{}",
        escape(what["operationId"].text()),
        broken(path),
        inline(what["summary"].text()),
        prose(&what["description"])
    );
    let needs_token = what["security"].is_some();
    if needs_token {
        page.push_str(
            "<p class=note>Needs a token where the gateway has a key: <code>Authorization: Bearer …</code>",
        );
    }
    let _ = write!(page, "<pre class=copy>{}</pre>", escape(&curl(document, method, path, what)));
    parameters(page, document, what);
    let body = &what["requestBody"];
    if body.is_some() {
        page.push_str("<h4>Body</h4>");
        content(page, body);
    }
    page.push_str("<h4>Answers</h4>");
    for (status, response) in what["responses"].entries() {
        answer(page, document, status, resolved(document, response));
    }
    page.push_str("</section>");
}

/// A line for a shell that asks for it.
fn curl(document: &Json, method: &str, path: &str, what: &Json) -> String {
    let parameters = what["parameters"].items().iter().map(|one| resolved(document, one));
    let path = parameters.fold(path.to_owned(), |path, one| {
        path.replace(&format!("{{{}}}", one["name"].text()), one["example"].text())
    });
    let mut line = String::from("curl");
    if method != "get" {
        let _ = write!(line, " -X {}", method.to_uppercase());
    }
    if what["security"].is_some() {
        line.push_str(" -H \"Authorization: Bearer $TOKEN\"");
    }
    let body = &what["requestBody"]["content"]["application/json"]["example"];
    if body.is_some() {
        let body = serde_json::to_string(body).unwrap_or_default();
        let _ = write!(line, " \\\n  -H 'Content-Type: application/json' \\\n  -d '{body}' \\\n ");
    }
    let query = what["parameters"].items().iter().find(|one| one["name"].text() == "limit");
    let query = query.map_or("", |_| "?limit=20");
    let quote = if query.is_empty() { "" } else { "'" };
    let _ = write!(line, " {quote}{SERVER}{path}{query}{quote}");
    line
}

fn parameters(page: &mut String, document: &Json, what: &Json) {
    let parameters = what["parameters"].items();
    if parameters.is_empty() {
        return;
    }
    page.push_str("<h4>Parameters</h4><dl>");
    for parameter in parameters.iter().map(|parameter| resolved(document, parameter)) {
        let required = parameter["required"] == Json::Bool(true);
        let place = format!("in the {}, ", parameter["in"].text());
        field(page, parameter["name"].text(), &place, required, parameter, &parameter["schema"]);
    }
    page.push_str("</dl>");
}

/// A name with its type and what it says.
fn field(
    page: &mut String,
    name: &str,
    place: &str,
    required: bool,
    described: &Json,
    schema: &Json,
) {
    let _ = write!(
        page,
        "<dt><code>{}</code> <span class=kind>{place}{}</span>{}<dd>{}",
        escape(name),
        kind(schema),
        if required { "" } else { " <span class=kind>optional</span>" },
        prose(&described["description"])
    );
}

fn answer(page: &mut String, document: &Json, status: &str, response: &Json) {
    let class = status.get(..1).unwrap_or_default();
    // What goes well is what people look for.
    let open = if class == "2" { " open" } else { "" };
    let _ = write!(
        page,
        "<details{open}><summary><b class=\"tag s{class}\">{}</b> {}</summary>",
        escape(status),
        inline(response["description"].text())
    );
    for (name, header) in response["headers"].entries() {
        let header = resolved(document, header);
        let _ = write!(
            page,
            "<p><code>{}</code>: {}",
            escape(name),
            inline(header["description"].text())
        );
    }
    content(page, response);
    page.push_str("</details>");
}

fn content(page: &mut String, of: &Json) {
    for (media_type, content) in of["content"].entries() {
        let schema = &content["schema"];
        let _ = write!(page, "<p class=kind><code>{}</code> {}", escape(media_type), kind(schema));
        example(page, &content["example"]);
    }
}

fn example(page: &mut String, example: &Json) {
    match example {
        Json::Null => {}
        Json::Text(text) => {
            let _ = write!(page, "<pre>{}</pre>", escape(text));
        }
        example => {
            let text = serde_json::to_string_pretty(example).unwrap_or_default();
            let _ = write!(page, "<pre>{}</pre>", escape(&text));
        }
    }
}

/// Events with their direction, as classes and anchors have it.
fn all_events(document: &Json) -> impl Iterator<Item = (&'static str, &str, &Json)> {
    let of = |key: &'static str, direction| {
        document[EVENTS][key].entries().map(move |(name, event)| (direction, name, event))
    };
    of("clientEmits", "emit").chain(of("serverEmits", "on"))
}

fn events(page: &mut String, document: &Json) {
    let _ = write!(
        page,
        "<h2 class=part id=events>Socket.IO</h2>{}<pre class=copy>{}</pre>",
        prose(&document[EVENTS]["description"]),
        escape(&format!(
            "import {{ io }} from \"socket.io-client\";\nconst socket = io(\"{SERVER}\");"
        ))
    );
    for (direction, name, event) in all_events(document) {
        let _ = write!(
            page,
            "<section id=\"{direction}-{0}\"><h3><b class=\"tag {direction}\">{direction}</b> <code>{0}</code></h3>\
            <p class=lead>{1}{2}<h4>Payload</h4>",
            escape(name),
            inline(event["summary"].text()),
            prose(&event["description"])
        );
        payload(page, &event["payload"]);
        if event["ack"].is_some() {
            page.push_str("<h4>Ack</h4>");
            payload(page, &event["ack"]);
            let _ = write!(page, "<p class=kind>or {}", kind(&event["ack"]["refused"]));
        }
        page.push_str("</section>");
    }
    page.push_str("<section id=codes><h3>Errors</h3>");
    page.push_str("<p class=lead>An ack with <code>error</code>, or <code>message_error</code>, has one of these codes; so have errors over HTTP.<dl>");
    for (code, means) in document[EVENTS]["codes"].entries() {
        let _ = write!(page, "<dt><code>{}</code><dd><p>{}", escape(code), inline(means.text()));
    }
    page.push_str("</dl></section>");
}

/// Its fields, and how it looks.
fn payload(page: &mut String, payload: &Json) {
    let schema = &payload["schema"];
    if schema.is_some() && !schema["properties"].is_some() {
        let _ = write!(page, "<p class=kind>{}", kind(schema));
    }
    let items = if schema["items"].is_some() { &schema["items"] } else { schema };
    page.push_str(&prose(&payload["description"]));
    properties(page, items);
    example(page, &payload["example"]);
}

fn schemas(page: &mut String, document: &Json) {
    page.push_str("<h2 class=part id=schemas>Schemas</h2>");
    for (name, schema) in document["components"]["schemas"].entries() {
        let _ = write!(
            page,
            "<section id=\"{0}\"><h3><code>{0}</code></h3>{1}",
            escape(name),
            prose(&schema["description"])
        );
        if schema["properties"].is_some() {
            properties(page, schema);
        } else {
            let _ = write!(page, "<p class=kind>{}", kind(schema));
        }
        page.push_str("</section>");
    }
}

fn properties(page: &mut String, schema: &Json) {
    let mut properties = schema["properties"].entries().peekable();
    if properties.peek().is_none() {
        return;
    }
    page.push_str("<dl>");
    for (name, property) in properties {
        let required = schema["required"].items().iter().any(|required| required.text() == name);
        field(page, name, "", required, property, property);
    }
    page.push_str("</dl>");
}

/// The type of a schema, in short.
fn kind(schema: &Json) -> String {
    if let Some(name) = schema["$ref"].text().rsplit('/').next().filter(|name| !name.is_empty()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    let values: Vec<_> = schema["enum"].items().iter().chain(given(&schema["const"])).collect();
    if !values.is_empty() {
        let values: Vec<_> = values.into_iter().map(|value| code(&as_text(value))).collect();
        return values.join(" or ");
    }
    let types = schema["type"].items().iter().chain(given(&schema["type"]));
    let types: Vec<_> = types.map(Json::text).filter(|one| !one.is_empty()).collect();
    let one = match types[..] {
        ["array"] => format!("array of {}", kind(&schema["items"])),
        _ => escape(&types.join(" or ")),
    };
    one + &range(schema)
}

/// What a value must keep to, in words.
fn range(schema: &Json) -> String {
    let bounds = [
        ("minimum", "at least "),
        ("maximum", "at most "),
        ("minLength", "at least "),
        ("maxLength", "at most "),
        ("default", "if not given "),
    ];
    let bound = |(name, words): (&str, &str)| {
        let unit = if name.ends_with("Length") { " characters" } else { "" };
        given(&schema[name])
            .map(|value| format!(", {words}{}{unit}", escape(&as_text(value))))
            .next()
    };
    bounds.into_iter().filter_map(bound).collect()
}

fn given(value: &Json) -> impl Iterator<Item = &Json> {
    Some(value).filter(|value| value.is_some()).into_iter()
}

fn as_text(value: &Json) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// What a `$ref` points to.
fn resolved<'a>(document: &'a Json, value: &'a Json) -> &'a Json {
    match value["$ref"].text().strip_prefix('#') {
        Some(target) => document.pointer(target),
        None => value,
    }
}

/// A text in paragraphs.
fn prose(text: &Json) -> String {
    let paragraphs = text.text().split("\n\n").filter(|text| !text.is_empty());
    paragraphs.flat_map(|text| ["<p>".to_owned(), inline(text)]).collect()
}

/// A text; what stands between backticks is code.
fn inline(text: &str) -> String {
    let part = |(index, part): (usize, &str)| {
        if index % 2 == 1 { code(part) } else { escape(part) }
    };
    text.split('`').enumerate().map(part).collect()
}

fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(text))
}

/// A path that may be broken behind its slashes.
fn broken(path: &str) -> String {
    escape(path).replace('/', "/<wbr>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Json {
        serde_json::from_str(crate::http::openapi::DOCUMENT).unwrap()
    }

    fn page() -> String {
        render(&document())
    }

    #[test]
    fn the_page_shows_texts_and_keys_as_the_document_has_them() {
        let page = page();
        assert!(!page.contains('`'), "{}", page.split('`').nth(1).unwrap_or_default());
        let order = ["id", "sender", "content", "createdAt", "isAI", "chatSessionId"];
        let message = page.split("<section id=\"Message\">").nth(1).unwrap();
        let keys = message.split("<dt><code>").skip(1).map(|rest| rest.split('<').next().unwrap());
        assert!(keys.take(order.len()).eq(order));
        assert!(page.find("id=\"readChat\"") < page.find("id=\"eraseChat\""));
    }

    #[test]
    fn every_link_within_the_page_leads_somewhere() {
        let page = page();
        let targets = page
            .split("href=")
            .skip(1)
            .map(|rest| rest.trim_start_matches('"').split(['"', '>']).next().unwrap_or_default());
        for target in targets.filter_map(|target| target.strip_prefix('#')) {
            let found = [format!("id={target}>"), format!("id=\"{target}\"")];
            assert!(found.iter().any(|id| page.contains(id)), "{target}");
        }
    }

    /// Everything that is an object's property, wherever it stands.
    fn undescribed(document: &Json, value: &Json, path: &str, found: &mut Vec<String>) {
        for (name, property) in value["properties"].entries() {
            let described = |of: &Json| !of["description"].text().is_empty();
            if !described(property) && !described(resolved(document, property)) {
                found.push(format!("{path}.{name}"));
            }
        }
        for (key, value) in value.entries().filter(|(key, _)| *key != "example") {
            undescribed(document, value, &format!("{path}/{key}"), found);
        }
    }

    #[test]
    fn every_field_parameter_and_schema_is_described() {
        let (document, mut found) = (document(), Vec::new());
        undescribed(&document, &document, "", &mut found);
        assert_eq!(found, Vec::<String>::new());
        for (name, schema) in document["components"]["schemas"].entries() {
            assert!(schema["description"].is_some(), "{name}");
        }
    }

    #[test]
    fn what_is_told_to_be_code_cannot_become_markup() {
        let json = serde_json::json!({ "info": { "title": "<b>", "version": "\"x" } });
        let page = render(&serde_json::from_value(json).unwrap());
        assert!(page.contains("&lt;b&gt;") && page.contains("&quot;x") && !page.contains("<b>"));
    }

    #[test]
    fn lines_to_copy_ask_for_what_they_stand_at() {
        let document = document();
        let lines: Vec<_> = operations(&document)
            .map(|Operation { method, path, what }| curl(&document, method, path, what))
            .collect();
        assert!(lines.contains(&"curl http://localhost:4000/health".to_owned()), "{lines:#?}");
        let post = lines.iter().find(|line| line.contains("POST")).unwrap();
        assert!(
            post.contains(r#"-d '{"content":"Hi! How can I help you?","isAI":true}'"#),
            "{post}"
        );
        let listed =
            "curl -H \"Authorization: Bearer $TOKEN\" 'http://localhost:4000/api/chats?limit=20'";
        assert!(lines.contains(&listed.to_owned()), "{lines:#?}");
    }
}
