//! The generated JavaScript of a module, made to give any number of instances of the module.
//!
//! As wasm-bindgen writes it for `--target web`, a file of JavaScript is one instance for its whole life. An
//! instance that has trapped is of no use any more, and with it, in a thread that goes on, the file. Here the
//! text becomes a function that makes instances; what the file exports belongs to the first of them.

/// What all instances have around them.
///
/// A future of the module runs in tasks of its own. What a trap throws there, no call can throw: it ends a
/// process of Node, and a page waits for ever. It goes to whoever asked for it by `whenStopped`. After that,
/// and after `abandon`, the callbacks of the garbage collector stay out of the instance, whose memory may be
/// in any state.
const BEFORE: &str = "\
/**
 * Makes an instance of the module that shares nothing with the others.
 * @returns {typeof import('./ernie_vil.js')}
 */
export function create() {
let stopHandler;
let abandoned = false;

/**
 * Has a function called with what stopped the module in a task of its own, where no call can throw it.
 * @param {(thrown: unknown) => void} handler
 */
function whenStopped(handler) {
    stopHandler = handler;
}

/** Keeps the garbage collector's callbacks out of a module that has stopped. */
function abandon() {
    abandoned = true;
}

const queueMicrotask = (task) => globalThis.queueMicrotask(() => {
    try {
        task();
    } catch (thrown) {
        abandoned = true;
        if (!stopHandler) throw thrown;
        stopHandler(thrown);
    }
});
const FinalizationRegistry = globalThis.FinalizationRegistry && class extends globalThis.FinalizationRegistry {
    constructor(callback) {
        super((held) => {
            if (!abandoned) callback(held);
        });
    }
};

";

/// The types of what is exported beside the module's own.
pub const TYPES: &str = "
/** Makes an instance of the module that shares nothing with the others. */
export function create(): typeof import('./ernie_vil.js');
/** Has a function called with what stopped the module in a task of its own, where no call can throw it. */
export function whenStopped(handler: (thrown: unknown) => void): void;
/** Keeps the garbage collector's callbacks out of a module that has stopped. */
export function abandon(): void;
";

/// The last line that wasm-bindgen writes.
const DEFAULT: &str = "export { initSync, __wbg_init as default };";

/// The JavaScript that makes instances, of wasm-bindgen's.
///
/// # Errors
/// Says what of the text is not as expected: another version of wasm-bindgen may write it in another way.
pub fn instances(generated: &str) -> Result<String, String> {
    let (mut outside, mut inside, mut names) = (String::new(), String::new(), Vec::new());
    let mut has_default = false;
    for line in generated.lines() {
        if line == DEFAULT {
            has_default = true;
            continue;
        }
        // Its place is the file's beginning.
        if line.starts_with("import ") || line.starts_with("/* @ts-self-types=") {
            outside += &format!("{line}\n");
            continue;
        }
        let declaration = line.strip_prefix("export ");
        if let Some(declaration) = declaration {
            names.push(
                declared(declaration)
                    .ok_or_else(|| format!("'{line}' exports what is neither a class nor a function"))?,
            );
        }
        inside += &format!("{}\n", declaration.unwrap_or(line));
    }
    if !has_default {
        return Err(format!("'{DEFAULT}' is missing"));
    }
    for needed in ["queueMicrotask(", "FinalizationRegistry("] {
        if !inside.contains(needed) {
            return Err(format!("'{needed}' is missing, which is watched here"));
        }
    }
    names.extend(["initSync", "whenStopped", "abandon"]);
    let names = names.join(", ");
    Ok(format!(
        "{outside}{BEFORE}{inside}\nreturn {{ {names}, create, default: __wbg_init }};\n}}\n\n\
         const first = create();\nexport const {{ {names} }} = first;\nexport default first.default;\n"
    ))
}

/// The name in a declaration of a class or function.
fn declared(declaration: &str) -> Option<&str> {
    let kinds = ["class ", "function ", "async function "];
    let rest = kinds.iter().find_map(|kind| declaration.strip_prefix(kind))?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$')?;
    (end > 0).then(|| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATED: &str = "\
/* @ts-self-types=\"./ernie_vil.d.ts\" */

export class Model {
}
const ModelFinalization = new FinalizationRegistry(ptr => wasm.free(ptr));
/**
 * Documentation.
 */
export function version() {
    return 1;
}
function __wbg_get_imports() {
    return { queue: function(arg0) { queueMicrotask(arg0); } };
}
let wasm;
export { initSync, __wbg_init as default };
";

    #[test]
    fn exports_are_those_of_the_first_instance() {
        let text = instances(GENERATED).unwrap();
        assert!(text.starts_with("/* @ts-self-types="), "{text}");
        let exports: Vec<_> = text.lines().filter(|line| line.starts_with("export ")).collect();
        let expected = [
            "export function create() {",
            "export const { Model, version, initSync, whenStopped, abandon } = first;",
            "export default first.default;",
        ];
        assert_eq!(exports, expected);
        assert!(
            text.contains("\nclass Model {\n") && text.contains("\nfunction version() {\n"),
            "{text}"
        );
        assert!(text.contains(
            "return { Model, version, initSync, whenStopped, abandon, create, default: __wbg_init };"
        ));
    }

    #[test]
    fn another_form_of_the_text_is_an_error() {
        let other = GENERATED.replace(DEFAULT, "export default __wbg_init;");
        assert!(
            instances(&other)
                .unwrap_err()
                .contains("neither a class nor a function")
        );
        let other = GENERATED.replace(&format!("{DEFAULT}\n"), "");
        assert!(instances(&other).unwrap_err().contains("is missing"));
        let other = GENERATED.replace("queueMicrotask", "setTimeout");
        assert!(instances(&other).unwrap_err().contains("queueMicrotask"));
    }
}
