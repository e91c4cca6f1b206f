//! Lower layers never import higher ones, equals never import each other.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Top-level modules by layer; `lib.rs` lists them in the same order.
const LAYERS: [&[&str]; 12] = [
    &["backoff", "code", "credentials", "follow", "identity", "places", "shutdown", "telemetry"],
    &["config", "metrics", "wire"],
    &["ingress", "secrets"],
    &["tls"],
    &["callers", "transport"],
    // Request bodies are the visitor's half of a stream.
    &["origin"],
    &["proxy"],
    &["connector", "edge", "guard"],
    &["admin"],
    &["app"],
    &["demo"],
    &["cli"],
];

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// Every top-level module that a text refers to as `crate::NAME` or `crate::{NAME, …}`.
fn imports(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            let mut start = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if depth == 0 && start && (c.is_alphanumeric() || c == '_') => name.push(c),
                    c if depth == 0 && c == ':' && start => start = false,
                    _ => {}
                }
                if (c == ',' || c == ':') && !name.is_empty() {
                    names.push(std::mem::take(&mut name));
                }
            }
            if !name.is_empty() {
                names.push(name);
            }
        } else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

fn module_of(path: &Path, src: &Path) -> String {
    let relative = path.strip_prefix(src).unwrap();
    let first = relative.iter().next().unwrap().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn no_module_imports_a_layer_above_or_beside_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = BTreeMap::new();
    for file in files {
        let module = module_of(&file, &src);
        let Some(layer) = layer_of(&module) else {
            assert!(matches!(module.as_str(), "lib" | "main"), "{module} stands in no layer");
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        let production = text.split("#[cfg(test)]").next().unwrap();
        for import in imports(production) {
            let Some(imported) = layer_of(&import) else { continue };
            let allowed = imported < layer || import == module;
            if !allowed {
                wrong.insert(format!("{module} -> {import}"), file.clone());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_rule_sees_imports_in_groups() {
    let text =
        "use crate::{\n    code::Code,\n    transport::{Recv, Send},\n    wire,\n};\nlet x = crate::tls::provider();";
    let mut names = imports(text);
    names.sort();
    assert_eq!(names, ["code", "tls", "transport", "wire"]);
}

#[test]
fn the_crate_map_lists_every_module_in_the_order_of_the_layers() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let listed: Vec<_> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect();
    let expected: Vec<_> = LAYERS.iter().flat_map(|layer| layer.iter()).map(|name| (*name).to_owned()).collect();
    assert_eq!(listed, expected);
}
