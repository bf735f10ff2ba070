//! What stands between the generated packages of Go and the author's: the generator wants a package
//! for each exported interface and its own type of results, the author writes one package with
//! Go's errors.

/// The name in Go of a function of the contract.
pub fn name(function: &str) -> String {
    let words = function.split('-').map(|word| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}

/// The body of the functions that the generator makes for the author to fill in.
const STUB: &str = "panic(\"not implemented\")";

/// A generated package of stubs, each with a call of the author's function.
pub fn calls(stubs: &str, module: &str) -> String {
    let mut text = String::new();
    let mut body = String::new();
    for line in stubs.lines() {
        if let Some(signature) = line.strip_prefix("func ") {
            body = call(signature).unwrap_or_default();
        }
        match line.trim() == STUB {
            true => text.push_str(&body),
            false => text.push_str(line),
        }
        text.push('\n');
    }
    let mut imports = format!("import (\n\tfilter \"{module}\"\n");
    if text.contains("rbdkit.") {
        imports.push_str(&format!("\t\"{module}/rbdkit\"\n"));
    }
    match text.contains("import (\n") {
        true => text.replacen("import (\n", &imports, 1),
        false => text,
    }
}

/// The body for a signature like `Trim(_offset uint64) witTypes.Result[T, E] {`.
fn call(signature: &str) -> Option<String> {
    let (name, rest) = signature.split_once('(')?;
    let (parameters, result) = rest.split_once(')')?;
    let names = parameters.split(", ").filter_map(|parameter| parameter.split_once(' ')).map(|(name, _)| name);
    let call = format!("filter.{name}({})", names.filter(|name| name.starts_with('_')).collect::<Vec<_>>().join(", "));
    let result = result.trim().trim_end_matches('{').trim();
    Some(match result {
        "" => format!("\t{call}"),
        "rbdkit_filter_types.Description" => format!("\treturn {call}.Contract()"),
        _ => {
            if let Some((good, bad)) = generics(result, "witTypes.Result[").and_then(|types| types.rsplit_once(", ")) {
                let failed = if bad == "string" { "err.Error()" } else { "rbdkit.ErrnoOf(err)" };
                let (declared, value) = match good {
                    "witTypes.Unit" => ("err", "witTypes.Unit{}"),
                    _ => ("value, err", "value"),
                };
                let types = format!("{good}, {bad}");
                format!(
                    "\t{declared} := {call}\n\tif err != nil {{\n\t\treturn witTypes.Err[{types}]({failed})\n\t}}\n\
                     \treturn witTypes.Ok[{types}]({value})"
                )
            } else if let Some(of) = generics(result, "witTypes.Option[") {
                format!(
                    "\tvalue, is := {call}\n\tif !is {{\n\t\treturn witTypes.None[{of}]()\n\t}}\n\treturn \
                     witTypes.Some(value)"
                )
            } else {
                format!("\treturn {call}")
            }
        }
    })
}

/// What is between the brackets of a generic type.
fn generics<'a>(text: &'a str, of: &str) -> Option<&'a str> {
    text.strip_prefix(of)?.strip_suffix(']')
}

/// The line of the generated functions that makes what keeps their memory in its place, and what is
/// written instead: `keep.go` says why.
const PINNER: &str = "pinner := &runtime.Pinner{}";
const KEEPER: &str = "pinner := &witRuntime.Keeper{}";

/// The begin of an allocation in the generated functions, and what is written instead.
const ALLOCATE: &str = "witRuntime.Allocate(pinner, ";
const KEEP: &str = "pinner.Allocate(";

/// What only those functions have that take a list or text from memory: an address that is read.
const LISTED: &str = "uintptr(*(*uint32)(";

/// The lines that import Go's runtime and the package that has the keeper.
const RUNTIME: &str = "\"runtime\"";
const WIT_RUNTIME: &str = "witRuntime \"go.bytecodealliance.org/pkg/wit/runtime\"";

/// A generated package of imports whose functions leave nothing behind. The generator leaves it to
/// the author to free the lists that the host has returned. When such a function returns, the list
/// is an ordinary slice, and so it can be left to the collector.
pub fn imports(package: &str) -> String {
    let lines: Vec<&str> = package.lines().collect();
    let has_keeper = package.contains(WIT_RUNTIME);
    let mut text = String::new();
    for (nth, line) in lines.iter().enumerate() {
        let mut rest = lines[nth + 1..].iter().take_while(|line| !line.starts_with("func "));
        match line.trim() {
            PINNER => {
                if rest.any(|line| line.contains(LISTED)) {
                    text.push_str("\tdefer witRuntime.Unpin()\n");
                }
                text.push_str(&line.replace(PINNER, KEEPER));
            }
            RUNTIME if has_keeper => continue,
            RUNTIME => text.push_str(WIT_RUNTIME),
            _ => text.push_str(&line.replace(ALLOCATE, KEEP)),
        }
        text.push('\n');
    }
    text
}

/// The package that is compiled.
pub fn main(module: &str) -> String {
    format!(
        "// Made by rbdkit-filter.\n\npackage main\n\nimport _ \"{module}/bindings/wit_exports\"\n\n// A component has \
         no beginning of its own.\nfunc main() {{}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_gos_names() {
        assert_eq!(name("pread"), "Pread");
        assert_eq!(name("default-export"), "DefaultExport");
    }

    #[test]
    fn each_kind_of_result_has_its_call() {
        let body = |signature| call(signature).unwrap();
        assert_eq!(body("Close()  {"), "\tfilter.Close()");
        assert_eq!(body("ThreadModel() rbdkit_filter_types.ThreadModel {"), "\treturn filter.ThreadModel()");
        assert_eq!(
            body("Trim(_offset uint64, _length uint64) witTypes.Result[witTypes.Unit, rbdkit_filter_types.Errno] {"),
            "\terr := filter.Trim(_offset, _length)\n\tif err != nil {\n\t\treturn witTypes.Err[witTypes.Unit, \
             rbdkit_filter_types.Errno](rbdkit.ErrnoOf(err))\n\t}\n\treturn witTypes.Ok[witTypes.Unit, \
             rbdkit_filter_types.Errno](witTypes.Unit{})"
        );
        assert_eq!(
            body("GetReady() witTypes.Result[uint64, string] {"),
            "\tvalue, err := filter.GetReady()\n\tif err != nil {\n\t\treturn witTypes.Err[uint64, \
             string](err.Error())\n\t}\n\treturn witTypes.Ok[uint64, string](value)"
        );
        assert_eq!(
            body("NextRange() witTypes.Option[Range] {"),
            "\tvalue, is := filter.NextRange()\n\tif !is {\n\t\treturn witTypes.None[Range]()\n\t}\n\treturn \
             witTypes.Some(value)"
        );
        assert!(body("Configure(_params []witTypes.Tuple2[string, string]) bool {").ends_with("Configure(_params)"));
    }

    const IMPORTS: &str = "import (\nwitRuntime \"go.bytecodealliance.org/pkg/wit/runtime\"\n\"runtime\"\n)\n";

    #[test]
    fn an_import_keeps_its_memory_until_it_returns() {
        let area = |made| format!("func Alloc(length uint32) {{\n{made}defer pinner.Unpin()\n");
        let generated = area("        pinner := &runtime.Pinner{}\n")
            + "        returnArea := uintptr(witRuntime.Allocate(pinner, 8, 4))\n";
        let kept =
            area("        pinner := &witRuntime.Keeper{}\n") + "        returnArea := uintptr(pinner.Allocate(8, 4))\n";
        let import = "import (\nwitRuntime \"go.bytecodealliance.org/pkg/wit/runtime\"\n)\n";
        assert_eq!(imports(&format!("{IMPORTS}{generated}")), format!("{import}{kept}"));
        // A package that only pins has no import of the package with the keeper yet.
        assert_eq!(imports(&format!("import (\n\"runtime\"\n)\n{generated}")), format!("{import}{kept}"));
    }

    #[test]
    fn what_a_function_returns_is_left_to_the_collector() {
        let read = "func Read() []uint8 {\n        pinner := &runtime.Pinner{}\ndefer pinner.Unpin()\nvalue := \
                    unsafe.Slice((*uint8)(unsafe.Pointer(uintptr(*(*uint32)(unsafe.Pointer(returnArea))))), 1)\n";
        let kept = read.replace("        pinner", "\tdefer witRuntime.Unpin()\n        pinner");
        let kept = kept.replace("runtime.Pinner", "witRuntime.Keeper");
        assert_eq!(imports(read), kept);
        // Not the lists of the next function.
        let write = "func Write() {\n        pinner := &runtime.Pinner{}\n";
        assert_eq!(imports(&format!("{write}{read}")), write.replace("runtime.Pinner", "witRuntime.Keeper") + &kept);
    }
}
