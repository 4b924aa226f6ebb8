//! Keeps the shape of the sources: who may use whom, who may name which dependency, and what every file owes its
//! reader. It reads text, runs nothing, and does not judge whether the code works.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// For each top-level module, from the top down, what it may use beside itself. `lib.rs` stands above them all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("cli", &["runtime", "shard", "reactor", LEAVES]),
    (
        "testing",
        &["runtime", "service", "interop", "shard", "cross_shard", "tasks", "net", "reactor", "sys", LEAVES],
    ),
    ("runtime", &["service", "interop", "shard", "cross_shard", "tasks", "net", "reactor", "sys", LEAVES]),
    // It names what is connected to: `net::target`.
    ("service", &["shard", "net", LEAVES]),
    ("interop", &["shard", "tasks", "net", "reactor", LEAVES]),
    ("shard", &["cross_shard", "tasks", "net", "reactor", "sys", LEAVES]),
    ("cross_shard", &["reactor", "sys", LEAVES]),
    ("tasks", &["reactor", "sys", LEAVES]),
    ("net", &["reactor", "sys", LEAVES]),
    ("reactor", &["sys", LEAVES]),
    ("sys", &[LEAVES]),
    // The leaves, again from the top down.
    ("config", &["error", "shard_id"]),
    ("inline", &[]),
    ("error", &["addr", "shard_id"]),
    ("addr", &[]),
    ("shard_id", &[]),
    ("sync", &[]),
];

/// Stands for every leaf in a row of `MAY_USE`.
const LEAVES: &str = "the leaves";
const LEAF_MODULES: &[&str] = &["addr", "config", "error", "inline", "shard_id", "sync"];

/// Which file, or folder (with a slash at its end), below `src/` may name each dependency. A dependency may have its
/// row before it has its line in Cargo.toml; the other way round fails.
const DOORS: &[(&str, &[&str])] = &[
    ("mio", &["reactor/driver/mio.rs", "reactor/driver/mio/"]),
    ("io_uring", &["reactor/driver/uring.rs"]),
    ("socket2", &["sys/socket.rs"]),
    ("rustix", &["sys/", "reactor/driver/"]),
    ("libc", &["sys/", "reactor/driver/"]),
    ("crossbeam_queue", &["cross_shard/"]),
    ("async_task", &["tasks/"]),
    ("core_affinity", &["shard/placement.rs"]),
    ("num_cpus", &["shard/placement.rs"]),
    ("rustls", &["net/tls.rs", "net/tls/"]),
    // The second door: under loom a model of the queue stands in for crossbeam's, which loom cannot see into.
    ("loom", &["sync.rs", "cross_shard/queue.rs"]),
    ("prometheus_client", &["shard/metrics.rs"]),
    ("hyper", &["interop/hyper.rs"]),
    ("futures_io", &["interop/futures_io.rs"]),
    ("tokio", &["interop/tokio_io.rs"]),
    ("quinn", &["interop/quinn.rs"]),
    ("clap", &["cli.rs"]),
    ("tracing", &[EVERYWHERE]),
    ("pin_project_lite", &[EVERYWHERE]),
];

/// The door of a dependency that is part of the language here.
const EVERYWHERE: &str = "";

const MOST_LINES: usize = 800;

// ---- the promises -------------------------------------------------------------------------------------------

#[test]
fn use_runs_downward_only() {
    let tree = Tree::read();
    let violations: Vec<String> =
        tree.files.iter().flat_map(|(path, source)| misuses(&tree, path, source)).collect();
    assert_none(violations);
}

#[test]
fn each_dependency_is_named_behind_its_door_only() {
    let tree = Tree::read();
    let violations: Vec<String> =
        tree.files.iter().flat_map(|(path, source)| doors_passed(&tree, path, source)).collect();
    assert_none(violations);
}

#[test]
fn every_dependency_has_a_door() {
    assert_none(dependencies_without_door(&read(&package().join("Cargo.toml"))));
}

#[test]
fn every_module_has_a_row() {
    assert_none(modules_without_row(&Tree::read()));
}

#[test]
fn the_table_itself_runs_downward() {
    let place = |name: &str| MAY_USE.iter().position(|(module, _)| *module == name);
    for (module, _) in MAY_USE {
        for used in allowed(module).expect("every row is found by its own name") {
            assert!(
                place(used) > place(module),
                "the row of `{module}` names `{used}`, which is not below it"
            );
        }
    }
}

#[test]
fn every_file_begins_by_saying_its_job() {
    assert_none(all_sources().iter().filter_map(|(path, source)| without_job(path, source)).collect());
}

#[test]
fn no_file_is_longer_than_800_lines() {
    assert_none(all_sources().iter().filter_map(|(path, source)| too_long(path, source)).collect());
}

#[test]
fn every_unsafe_block_has_its_proof() {
    assert_none(all_sources().iter().flat_map(|(path, source)| unproved(path, source)).collect());
}

#[test]
fn a_layer_forwards_every_callback_of_a_protocol() {
    let shard = package().join("src/shard");
    let (protocol, layer) = (shard.join("protocol.rs"), shard.join("layer.rs"));
    if !protocol.exists() && !layer.exists() {
        eprintln!("nothing compared: src/shard has neither protocol.rs nor layer.rs yet");
        return;
    }
    assert_none(callbacks_not_forwarded(&read(&protocol), &read(&layer)));
}

// ---- who uses whom ------------------------------------------------------------------------------------------

/// The files below `src/` by their path there, and what the crate's root offers.
struct Tree {
    files: BTreeMap<String, String>,
    /// The top-level modules.
    modules: BTreeSet<String>,
    /// Names that `lib.rs` imports or re-exports, and the top-level module each comes from.
    exports: BTreeMap<String, String>,
    /// Files that are compiled for tests only, being declared as modules under `#[cfg(test)]`.
    test_only: BTreeSet<String>,
}

impl Tree {
    fn read() -> Tree {
        let src = package().join("src");
        let files = rust_files(&src).into_iter().map(|path| (relative(&path, &src), read(&path))).collect();
        Tree::new(files)
    }

    fn new(files: BTreeMap<String, String>) -> Tree {
        let mut tree =
            Tree { files, modules: BTreeSet::new(), exports: BTreeMap::new(), test_only: BTreeSet::new() };
        let root = parse("lib.rs", &tree.files["lib.rs"]);
        for item in &root.items {
            if let syn::Item::Mod(module) = item {
                tree.modules.insert(module.ident.to_string());
            }
        }
        for item in &root.items {
            let syn::Item::Use(item) = item else { continue };
            for import in flatten(&item.tree) {
                let names_root = matches!(import.path[0].as_str(), "crate" | "self");
                let path = &import.path[usize::from(names_root)..];
                if path.len() > 1 && tree.modules.contains(&path[0]) {
                    tree.exports.insert(import.name, path[0].clone());
                }
            }
        }
        for (path, source) in &tree.files {
            let mut finder = TestModules { module: module_path(path), found: Vec::new() };
            finder.visit_file(&parse(path, source));
            for module in finder.found {
                let stem = module.join("/");
                let below = format!("{stem}/");
                let same = |file: &&String| **file == format!("{stem}.rs") || file.starts_with(&below);
                tree.test_only.extend(tree.files.keys().filter(same).cloned());
            }
        }
        tree
    }
}

/// What the file's code outside its tests uses although it lies beside or above it.
fn misuses(tree: &Tree, path: &str, source: &str) -> Vec<String> {
    let own = module_path(path);
    let Some(own) = own.first() else { return Vec::new() };
    let Some(below) = allowed(own) else { return Vec::new() };
    let mut violations = Vec::new();
    for reference in references(tree, path, source) {
        let Reference::Inside { path: target, line } = reference else { continue };
        let Some(first) = target.first() else { continue };
        let module = if tree.modules.contains(first) { Some(first) } else { tree.exports.get(first) };
        match module {
            Some(module) if module == own || below.contains(&module.as_str()) => {}
            Some(module) => {
                violations
                    .push(format!("`{path}` uses `{module}`, which is not below `{own}` (line {line})"));
            }
            None => violations.push(format!(
                "`{path}` uses `crate::{first}`, which belongs to `lib.rs`, above `{own}` (line {line})"
            )),
        }
    }
    violations
}

/// The dependencies that the file's code outside its tests names although their door is elsewhere.
fn doors_passed(tree: &Tree, path: &str, source: &str) -> Vec<String> {
    let mut violations = Vec::new();
    for reference in references(tree, path, source) {
        let Reference::Outside { name, line } = reference else { continue };
        let Some((_, doors)) = DOORS.iter().find(|(dependency, _)| *dependency == name) else { continue };
        let passes = |door: &&str| if door.ends_with('/') { path.starts_with(*door) } else { path == *door };
        if !doors.iter().any(|door| *door == EVERYWHERE || passes(door)) {
            let doors = doors.join("` or `");
            violations.push(format!("`{path}` names `{name}`, whose door is `{doors}` (line {line})"));
        }
    }
    violations
}

fn modules_without_row(tree: &Tree) -> Vec<String> {
    let files = tree.files.keys().filter_map(|path| module_path(path).first().cloned());
    let modules: BTreeSet<String> = files.chain(tree.modules.iter().cloned()).collect();
    let unknown = modules.iter().filter(|module| allowed(module).is_none());
    unknown.map(|module| format!("`{module}` has no row in MAY_USE: say what is below it")).collect()
}

fn dependencies_without_door(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let mut tables: Vec<&toml::Value> = manifest.get("dependencies").into_iter().collect();
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(|target| target.get("dependencies")));
    }
    let names = tables.iter().filter_map(|table| table.as_table()).flat_map(|table| table.keys());
    let mut missing = Vec::new();
    for name in names {
        let identifier = name.replace('-', "_");
        if !DOORS.iter().any(|(dependency, _)| *dependency == identifier) {
            missing.push(format!("`{identifier}` has no row in DOORS: say which file may name it"));
        }
    }
    missing
}

/// What `module` may use, or `None` if the table does not know it.
fn allowed(module: &str) -> Option<Vec<&'static str>> {
    let (_, row) = MAY_USE.iter().find(|(name, _)| *name == module)?;
    let expand = |used: &&'static str| if *used == LEAVES { LEAF_MODULES.to_vec() } else { vec![*used] };
    Some(row.iter().flat_map(expand).collect())
}

// ---- reading paths out of a source file ---------------------------------------------------------------------

#[derive(Debug)]
enum Reference {
    /// A path inside this crate, from its root.
    Inside { path: Vec<String>, line: usize },
    /// The first name of any other path: a dependency, or something in scope that merely has such a name.
    Outside { name: String, line: usize },
}

fn references(tree: &Tree, path: &str, source: &str) -> Vec<Reference> {
    if tree.test_only.contains(path) {
        return Vec::new();
    }
    let mut paths = Paths { module: module_path(path), locals: BTreeSet::new(), found: Vec::new() };
    paths.visit_file(&parse(path, source));
    let Paths { locals, found, .. } = paths;
    let keep = |found: Found| match found.reference {
        Reference::Outside { ref name, .. } if !found.from_root && locals.contains(name) => None,
        reference => Some(reference),
    };
    found.into_iter().filter_map(keep).collect()
}

/// Collects every path outside `#[cfg(test)]`, those in macro calls included.
struct Paths {
    /// The module that is being read.
    module: Vec<String>,
    /// Names that stand for something of this crate: modules declared here, and what is imported from them.
    locals: BTreeSet<String>,
    found: Vec<Found>,
}

struct Found {
    reference: Reference,
    /// Written with a leading `::`, or by an import: it cannot mean a local name.
    from_root: bool,
}

impl Paths {
    fn add(&mut self, segments: &[String], line: usize, from_root: bool) {
        let Some(first) = segments.first() else { return };
        let mut target = match first.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => self.module.clone(),
            _ => {
                let reference = Reference::Outside { name: first.clone(), line };
                self.found.push(Found { reference, from_root });
                return;
            }
        };
        for segment in segments {
            match segment.as_str() {
                "crate" | "self" => {}
                "super" => drop(target.pop()),
                name => target.push(name.to_owned()),
            }
        }
        self.found.push(Found { reference: Reference::Inside { path: target, line }, from_root });
    }

    /// Reads what a macro is given: no grammar is known there, but a path looks like a path.
    fn scan(&mut self, tokens: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if let TokenTree::Group(group) = &tokens[at] {
                self.scan(group.stream(), &[]);
            }
            let from_root = is_path_separator(&tokens[at..]) && prefix.is_empty();
            let mut next = if from_root { at + 2 } else { at };
            let Some(TokenTree::Ident(first)) = tokens.get(next) else {
                at += 1;
                continue;
            };
            let line = first.span().start().line;
            let mut segments = prefix.to_vec();
            segments.push(first.to_string());
            next += 1;
            while is_path_separator(&tokens[next..]) {
                match tokens.get(next + 2) {
                    Some(TokenTree::Ident(segment)) => segments.push(segment.to_string()),
                    Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                        for part in split_at_commas(group.stream()) {
                            self.scan(part, &segments);
                        }
                        segments.clear();
                        break;
                    }
                    _ => break,
                }
                next += 3;
            }
            if segments.len() > 1 {
                self.add(&segments, line, from_root);
            }
            at = next;
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !for_tests_only(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attrs = match item {
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            syn::ImplItem::Macro(item) => &item.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !for_tests_only(attrs) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !for_tests_only(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !for_tests_only(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.locals.insert(module.ident.to_string());
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.add(&[item.ident.to_string()], item.span().start().line, true);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for import in flatten(&item.tree) {
            if matches!(import.path[0].as_str(), "crate" | "self" | "super") {
                self.locals.insert(import.name);
            }
            self.add(&import.path, import.line, true);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        // One segment alone is a variable, an item in scope, or the `crate` of `pub(crate)`.
        if path.segments.len() > 1 {
            let segments: Vec<String> =
                path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.add(&segments, path.span().start().line, path.leading_colon.is_some());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.scan(call.tokens.clone(), &[]);
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.scan(list.tokens.clone(), &[]);
        }
        visit::visit_attribute(self, attribute);
    }
}

/// Finds the modules that lie in files of their own and are declared for tests only.
struct TestModules {
    module: Vec<String>,
    found: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for TestModules {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.module.push(module.ident.to_string());
        if module.content.is_none() && for_tests_only(&module.attrs) {
            self.found.push(self.module.clone());
        }
        visit::visit_item_mod(self, module);
        self.module.pop();
    }
}

/// One leaf of a `use` tree.
struct Import {
    path: Vec<String>,
    /// What it is called here.
    name: String,
    line: usize,
}

fn flatten(tree: &syn::UseTree) -> Vec<Import> {
    fn walk(tree: &syn::UseTree, prefix: &[String], imports: &mut Vec<Import>) {
        let mut path = prefix.to_vec();
        let line = tree.span().start().line;
        let name = match tree {
            syn::UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                return walk(&inner.tree, &path, imports);
            }
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| walk(tree, prefix, imports));
            }
            syn::UseTree::Name(leaf) if leaf.ident == "self" => prefix.last().cloned().unwrap_or_default(),
            syn::UseTree::Name(leaf) => leaf.ident.to_string(),
            syn::UseTree::Rename(leaf) => leaf.rename.to_string(),
            syn::UseTree::Glob(_) => "*".to_owned(),
        };
        path.push(match tree {
            syn::UseTree::Rename(leaf) => leaf.ident.to_string(),
            syn::UseTree::Name(leaf) => leaf.ident.to_string(),
            _ => name.clone(),
        });
        imports.push(Import { path, name, line });
    }
    let mut imports = Vec::new();
    walk(tree, &[], &mut imports);
    imports
}

/// Whether these attributes keep an item out of every build but the tests'.
fn for_tests_only(attrs: &[syn::Attribute]) -> bool {
    fn needs_test(meta: &syn::Meta) -> bool {
        let children = |list: &syn::MetaList| {
            list.parse_args_with(syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated)
        };
        match meta {
            syn::Meta::Path(path) => path.is_ident("test"),
            syn::Meta::List(list) if list.path.is_ident("all") => {
                children(list).is_ok_and(|children| children.iter().any(needs_test))
            }
            syn::Meta::List(list) if list.path.is_ident("any") => {
                children(list).is_ok_and(|children| !children.is_empty() && children.iter().all(needs_test))
            }
            _ => false,
        }
    }
    let cfg = |attr: &&syn::Attribute| attr.path().is_ident("cfg");
    attrs.iter().filter(cfg).any(|attr| attr.parse_args().is_ok_and(|meta| needs_test(&meta)))
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::ForeignMod(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::TraitAlias(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Union(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn is_path_separator(tokens: &[TokenTree]) -> bool {
    let colon = |token: Option<&TokenTree>, spacing: Option<Spacing>| {
        matches!(token, Some(TokenTree::Punct(punct))
            if punct.as_char() == ':' && spacing.is_none_or(|spacing| punct.spacing() == spacing))
    };
    colon(tokens.first(), Some(Spacing::Joint)) && colon(tokens.get(1), None)
}

fn split_at_commas(tokens: TokenStream) -> Vec<TokenStream> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
    tokens.split(comma).map(|part| part.iter().cloned().collect()).collect()
}

// ---- what every file owes its reader ------------------------------------------------------------------------

fn without_job(path: &str, source: &str) -> Option<String> {
    let first = source.lines().next().unwrap_or_default();
    // The crate's own documentation may be the README.
    let said = first.strip_prefix("//!").is_some_and(|job| !job.trim().is_empty())
        || (path == "src/lib.rs" && first.starts_with("#![doc = include_str!("));
    (!said).then(|| format!("`{path}` does not begin with a `//!` line that says its job"))
}

fn too_long(path: &str, source: &str) -> Option<String> {
    let lines = source.lines().count();
    (lines > MOST_LINES).then(|| format!("`{path}` has {lines} lines: above {MOST_LINES} it holds two ideas"))
}

/// The unsafe blocks and impls without a `SAFETY:` comment of their own, directly above or on the same line.
fn unproved(path: &str, source: &str) -> Vec<String> {
    fn find(tokens: TokenStream, lines: &mut Vec<usize>) {
        let mut after_unsafe = None;
        for token in tokens {
            let opens = match &token {
                TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                TokenTree::Ident(word) => word == "impl",
                _ => false,
            };
            lines.extend(after_unsafe.take().filter(|_| opens));
            match token {
                TokenTree::Ident(word) if word == "unsafe" => after_unsafe = Some(word.span().start().line),
                TokenTree::Group(group) => find(group.stream(), lines),
                _ => {}
            }
        }
    }
    let mut blocks = Vec::new();
    find(source.parse().unwrap_or_else(|error| panic!("`{path}` is not Rust: {error}")), &mut blocks);
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let proved = |line: &usize| {
        // Upward to where the statement begins, then through the comment and the attributes above it.
        let above = lines[..line - 1].iter().rev().take_while(|line| {
            let comment_or_attribute = line.starts_with("//") || line.starts_with('#');
            comment_or_attribute || !(line.is_empty() || line.ends_with([';', '{', '}', ',']))
        });
        let comment =
            |line: &str| line.split_once("//").is_some_and(|(_, comment)| comment.contains("SAFETY:"));
        comment(lines[line - 1]) || above.copied().any(comment)
    };
    let unproved = blocks.iter().filter(|line| !proved(line));
    unproved.map(|line| format!("`{path}` line {line}: `unsafe` without a `SAFETY:` comment")).collect()
}

/// Compares the methods of `Protocol` with those that every `Layer` forwards.
fn callbacks_not_forwarded(protocol: &str, layer: &str) -> Vec<String> {
    let protocol = parse("shard/protocol.rs", protocol);
    let layer = parse("shard/layer.rs", layer);
    let trait_methods = |file: &syn::File, name: &str| -> Option<Vec<String>> {
        file.items.iter().find_map(|item| match item {
            syn::Item::Trait(item) if item.ident == name => Some(
                item.items
                    .iter()
                    .filter_map(
                        |item| if let syn::TraitItem::Fn(method) = item { Some(method) } else { None },
                    )
                    .map(|method| method.sig.ident.to_string())
                    .collect(),
            ),
            _ => None,
        })
    };
    let forwarded: Option<Vec<String>> = layer.items.iter().find_map(|item| match item {
        syn::Item::Impl(item)
            if item.trait_.as_ref().is_some_and(|(_, path, _)| ends_with(path, "Protocol")) =>
        {
            Some(
                item.items
                    .iter()
                    .filter_map(|item| if let syn::ImplItem::Fn(method) = item { Some(method) } else { None })
                    .filter(|method| calls(&method.block, &method.sig.ident))
                    .map(|method| method.sig.ident.to_string())
                    .collect(),
            )
        }
        _ => None,
    });
    let Some(callbacks) = trait_methods(&protocol, "Protocol") else {
        return vec!["`shard/protocol.rs` has no trait `Protocol`".to_owned()];
    };
    let Some(forwarded) = forwarded else {
        return vec!["`shard/layer.rs` does not implement `Protocol`".to_owned()];
    };
    let mut violations = Vec::new();
    for callback in &callbacks {
        if !forwarded.contains(callback) {
            violations.push(format!("`shard/layer.rs` does not forward `Protocol::{callback}`"));
        }
    }
    // Where a layer may override single callbacks, it has a method of the same name for each of them.
    let overridable = trait_methods(&layer, "Layer").unwrap_or_default();
    if overridable.iter().any(|method| callbacks.contains(method)) {
        let missing = callbacks.iter().filter(|callback| !overridable.contains(callback));
        violations.extend(missing.map(|callback| format!("`Layer` has no `{callback}` to override")));
    }
    violations
}

fn ends_with(path: &syn::Path, name: &str) -> bool {
    path.segments.last().is_some_and(|segment| segment.ident == name)
}

/// Whether `block` calls something named `method`.
fn calls(block: &syn::Block, method: &syn::Ident) -> bool {
    struct Calls<'a> {
        method: &'a syn::Ident,
        found: bool,
    }
    impl<'ast> Visit<'ast> for Calls<'_> {
        fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
            self.found |= call.method == *self.method;
            visit::visit_expr_method_call(self, call);
        }
        fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
            if let syn::Expr::Path(function) = &*call.func {
                self.found |= ends_with(&function.path, &self.method.to_string());
            }
            visit::visit_expr_call(self, call);
        }
    }
    let mut calls = Calls { method, found: false };
    calls.visit_block(block);
    calls.found
}

// ---- files --------------------------------------------------------------------------------------------------

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file that people read here, by its path in the package.
fn all_sources() -> Vec<(String, String)> {
    let folders = ["src", "tests", "examples", "benches", "fuzz"].map(|folder| package().join(folder));
    let files = folders.iter().filter(|folder| folder.is_dir()).flat_map(|folder| rust_files(folder));
    files.map(|path| (relative(&path, package()), read(&path))).collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a directory that opened can be listed").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files.extend(rust_files(&path));
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// `src/net/tcp.rs` is the module `net::tcp`, `src/net/mod.rs` is `net`, `src/lib.rs` is the root.
fn module_path(path: &str) -> Vec<String> {
    let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).expect("the path was found below the folder").to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn parse(path: &str, source: &str) -> syn::File {
    syn::parse_file(source).unwrap_or_else(|error| panic!("`{path}` is not Rust: {error}"))
}

#[track_caller]
fn assert_none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

/// The checks above, shown to catch what they are for.
#[path = "architecture/fixtures.rs"]
mod fixtures;
