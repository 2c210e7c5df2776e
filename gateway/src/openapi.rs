//! `GET /openapi.json`, and `GET /docs`: the same as a page for people. It is made here, holds no
//! script and loads nothing, and its policy keeps it so.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{Html, IntoResponse};
use serde_json::{Map, Value};

/// The document; tests compare it with what is served.
pub const DOCUMENT: &str = include_str!("openapi.json");
const STYLE: &str = include_str!("docs.css");
/// Nothing but the page's own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

static PAGE: LazyLock<String> = LazyLock::new(|| {
    serde_json::from_str(DOCUMENT).map(|document| render(&document)).unwrap_or_default()
});

/// The routes as `OpenAPI` 3.1.
pub async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], DOCUMENT)
}

/// The routes as a page.
pub async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(PAGE.as_str()))
}

/// Writing to memory cannot fail.
fn render(document: &Value) -> String {
    let mut page = String::new();
    let title = escaped(&document["info"]["title"]);
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8>\
        <meta name=viewport content=\"width=device-width\"><title>{title}</title>\
        <style>{STYLE}</style><h1>{title} <small>{}</small></h1>{}<nav><ul>",
        escaped(&document["info"]["version"]),
        prose(&document["info"]["description"])
    );
    let operations = operations(document);
    for (method, path, operation) in &operations {
        let _ = write!(
            page,
            "<li><a href=\"#{}\"><b class={method}>{method}</b> <code>{}</code></a> {}",
            anchor(operation),
            escape(path),
            escaped(&operation["summary"])
        );
    }
    page.push_str("<li><a href=#schemas>Schemas</a></ul><p>For programs: <a href=/openapi.json>/openapi.json</a></nav>");
    for (method, path, operation) in &operations {
        let _ = write!(
            page,
            "<section id=\"{}\"><h2><b class={method}>{method}</b> <code>{}</code></h2><p>{}{}",
            anchor(operation),
            escape(path),
            escaped(&operation["summary"]),
            prose(&operation["description"])
        );
        if operation["security"].is_array() {
            page.push_str("<p>Needs a token, where the gateway has a key: <code>Authorization: Bearer …</code>");
        }
        parameters(&mut page, document, operation);
        request_body(&mut page, document, operation);
        responses(&mut page, document, operation);
        page.push_str("</section>");
    }
    schemas(&mut page, document);
    page
}

/// Every operation: method, path, what it is.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let of_path =
        |(path, methods)| entries(methods).map(move |(method, what)| (method, path, what));
    entries(&document["paths"]).flat_map(of_path).collect()
}

fn parameters(page: &mut String, document: &Value, operation: &Value) {
    let parameters = operation["parameters"].as_array();
    let Some(parameters) = parameters.filter(|list| !list.is_empty()) else { return };
    page.push_str("<h3>Parameters</h3><table><tr><th>Name<th>In<th>Type<th>What it says");
    for parameter in parameters.iter().map(|parameter| resolved(document, parameter)) {
        let _ = write!(
            page,
            "<tr><td><code>{}</code><td>{}<td>{}<td>{}",
            escaped(&parameter["name"]),
            escaped(&parameter["in"]),
            kind(&parameter["schema"]),
            prose(&parameter["description"])
        );
    }
    page.push_str("</table>");
}

fn request_body(page: &mut String, document: &Value, operation: &Value) {
    if operation["requestBody"].is_object() {
        page.push_str("<h3>Body</h3>");
        content(page, document, &operation["requestBody"]);
    }
}

fn responses(page: &mut String, document: &Value, operation: &Value) {
    page.push_str("<h3>Answers</h3>");
    for (status, response) in entries(&operation["responses"]) {
        let response = resolved(document, response);
        let _ = write!(
            page,
            "<details><summary><code>{}</code> {}</summary>",
            escape(status),
            escaped(&response["description"])
        );
        for (name, header) in entries(&response["headers"]) {
            let header = resolved(document, header);
            let _ = write!(
                page,
                "<p><code>{}</code>: {}",
                escape(name),
                escaped(&header["description"])
            );
        }
        content(page, document, response);
        page.push_str("</details>");
    }
}

fn content(page: &mut String, document: &Value, of: &Value) {
    for (media_type, content) in entries(&of["content"]) {
        let _ = write!(page, "<p><code>{}</code> {}", escape(media_type), kind(&content["schema"]));
        let example = match &content["example"] {
            Value::Null => &resolved(document, &content["schema"])["examples"][0],
            example => example,
        };
        if let Some(text) = example.as_str() {
            let _ = write!(page, "<pre>{}</pre>", escape(text));
        } else if !example.is_null() {
            let _ = write!(page, "<pre>{}</pre>", escape(&format!("{example:#}")));
        }
    }
}

fn schemas(page: &mut String, document: &Value) {
    page.push_str("<section id=schemas><h2>Schemas</h2>");
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let _ =
            write!(page, "<h3 id=\"{0}\">{0}</h3>{1}", escape(name), prose(&schema["description"]));
        if schema["properties"].is_object() {
            page.push_str("<table><tr><th>Key<th>Type<th>What it says");
        }
        let required = |key: &str| {
            let keys = schema["required"].as_array();
            keys.is_some_and(|keys| keys.iter().any(|required| required == key))
        };
        for (key, property) in entries(&schema["properties"]) {
            let _ = write!(
                page,
                "<tr><td><code>{}</code>{}<td>{}<td>{}",
                escape(key),
                if required(key) { "" } else { " (optional)" },
                kind(property),
                prose(&property["description"])
            );
        }
        page.push_str("</table>");
    }
    page.push_str("</section>");
}

/// The type of a schema, in short.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|target| target.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    let one = match &schema["type"] {
        Value::Array(types) => {
            let types = types.iter().filter_map(Value::as_str);
            escape(&types.collect::<Vec<_>>().join(" or "))
        }
        Value::String(one) if one == "array" => format!("array of {}", kind(&schema["items"])),
        one => escaped(one),
    };
    let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
    let values: Vec<_> = values.map(|value| escape(&value.to_string())).collect();
    let range = ["minimum", "maximum", "minLength", "maxLength", "default"];
    let range = range.into_iter().filter_map(|name| Some((name, schema.get(name)?)));
    let range: Vec<_> = range.map(|(name, value)| format!(", {name} {value}")).collect();
    if values.is_empty() { one + &range.concat() } else { format!("{one}: {}", values.join(", ")) }
}

/// What a `$ref` points to.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let target = value["$ref"].as_str().and_then(|target| target.strip_prefix('#'));
    target.and_then(|target| document.pointer(target)).unwrap_or(value)
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter).map(|(key, value)| (key.as_str(), value))
}

fn anchor(operation: &Value) -> String {
    escaped(&operation["operationId"])
}

/// A text in paragraphs; what stands between backticks is code.
fn prose(text: &Value) -> String {
    let paragraphs = text.as_str().unwrap_or_default().split("\n\n");
    let code = |(index, part): (usize, &str)| {
        if index % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() }
    };
    let paragraph = |text: &str| {
        let text = escape(text);
        let parts = text.split('`').enumerate().map(code).collect::<String>();
        format!("<p>{parts}")
    };
    paragraphs.filter(|text| !text.is_empty()).map(paragraph).collect()
}

fn escaped(value: &Value) -> String {
    escape(value.as_str().unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
