//! The kernels' text in WGSL.
//!
//! All of them read and write `vec4<f32>`: every width is a multiple of 4. Loops over a thread's own values are
//! written out, so that they live in registers.

use std::fmt::Write;

use crate::weights::{Bits, Dtype};

/// A kernel, with what its text depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    /// Y = f(X W + b), or Y += X W + b.
    Linear {
        /// Rows of Y that a thread computes, of four columns.
        rows: u32,
        /// Threads that share the work of four columns.
        slices: u32,
        /// How W is kept.
        dtype: Dtype,
        epilogue: Epilogue,
    },
    /// Each row's mean and variance taken away, then scale and shift.
    LayerNorm { in_place: bool },
    /// softmax(q k^T * scale) v of each sequence and head.
    Attention {
        /// Queries that a workgroup computes, each by one thread.
        queries: u32,
        /// A head's query and value widths, divided by 4.
        query_width: u32,
        value_width: u32,
    },
    /// The rows that each sequence's keys start with.
    FirstRows,
    /// Channels of a pixel beside one another to the same, each channel for itself; or planes to that, all of them
    /// together. A swish follows.
    Convolution {
        kernel: u32,
        stride: u32,
        /// 1, or how many planes there are.
        planes: u32,
    },
    /// The means, or sums, of columns over parts of the rows.
    Mean,
    /// Columns times a factor.
    Gate,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    None,
    /// Added to what is there.
    Add,
    QuickGelu,
    Gelu,
    Relu,
    Swish,
    Sigmoid,
}

/// Columns of four that a workgroup of a linear kernel computes, where threads do not share them.
pub(super) const LINEAR_COLUMNS: u32 = 64;
/// The same where they do.
pub(super) const SLICED_COLUMNS: u32 = 16;
/// Threads that normalise a row.
const NORM_THREADS: u32 = 64;
/// Threads of a workgroup that copies rows.
pub(super) const COPY_THREADS: u32 = 64;
/// Columns of four that a workgroup takes the mean of, each by as many threads.
pub(super) const MEAN_COLUMNS: u32 = 16;

impl Kernel {
    /// Buffers beside the parameters, the last of which is written.
    pub(super) fn buffers(self) -> u32 {
        match self {
            Kernel::Linear { dtype, .. } => match dtype {
                Dtype::F32 | Dtype::F16 => 4,
                Dtype::Quantised(_) => 5,
            },
            Kernel::LayerNorm { in_place } => 4 - u32::from(in_place),
            Kernel::Attention { .. } | Kernel::FirstRows => 3,
            Kernel::Convolution { .. } => 4,
            Kernel::Mean | Kernel::Gate => 2,
        }
    }

    pub(super) fn source(self) -> String {
        match self {
            Kernel::Linear {
                rows,
                slices,
                dtype,
                epilogue,
            } => linear(rows, slices, dtype, epilogue),
            Kernel::LayerNorm { in_place } => layer_norm(in_place),
            Kernel::Attention {
                queries,
                query_width,
                value_width,
            } => attention(queries, query_width, value_width),
            Kernel::FirstRows => first_rows(),
            Kernel::Convolution {
                kernel,
                stride,
                planes,
            } => convolution(kernel, stride, planes),
            Kernel::Mean => mean(),
            Kernel::Gate => gate(),
        }
    }
}

/// Declares the parameters, and the buffers by name and element type, the last of which is written.
fn head(parameters: &[&str], buffers: &[(&str, &str)]) -> String {
    let mut text = String::from("struct Parameters {\n");
    for name in parameters {
        let kind = match *name {
            "epsilon" | "scale" => "f32",
            _ => "u32",
        };
        writeln!(text, "  {name}: {kind},").unwrap();
    }
    text += "}\n@group(0) @binding(0) var<uniform> p: Parameters;\n";
    for (i, (name, element)) in buffers.iter().enumerate() {
        let access = if i + 1 == buffers.len() {
            "read_write"
        } else {
            "read"
        };
        writeln!(
            text,
            "@group(0) @binding({}) var<storage, {access}> {name}: array<{element}>;",
            i + 1
        )
        .unwrap();
    }
    text
}

const MAIN: &str =
    "(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) thread: vec3<u32>) {\n";

/// A thread computes some rows of four columns; its neighbours have the next columns, so that they read a row of W
/// together and the same values of X. Where there is too little for the whole card, `slices` threads take a part of
/// the depth each.
fn linear(rows: u32, slices: u32, dtype: Dtype, epilogue: Epilogue) -> String {
    let columns = match slices {
        1 => LINEAR_COLUMNS,
        _ => SLICED_COLUMNS,
    };
    let vectors = "vec4<f32>";
    let w = match dtype {
        Dtype::F32 => vectors,
        Dtype::F16 => "vec2<u32>",
        Dtype::Quantised(_) => "u32",
    };
    let mut buffers = vec![("x", vectors), ("w", w), ("b", vectors), ("y", vectors)];
    if matches!(dtype, Dtype::Quantised(_)) {
        buffers.insert(3, ("scales", vectors));
    }
    let mut t = head(
        &[
            "rows", "depth", "columns", "w_stride", "w_column", "x_stride", "x_row", "y_stride", "y_row",
            "y_column",
        ],
        &buffers,
    );
    t += match dtype {
        Dtype::F32 => "fn weight(i: u32) -> vec4<f32> { return w[i]; }\n",
        Dtype::F16 => {
            "fn weight(i: u32) -> vec4<f32> {\n  let h = w[i];\n  return vec4<f32>(unpack2x16float(h.x), unpack2x16float(h.y));\n}\n"
        }
        Dtype::Quantised(Bits::Int8) => {
            "fn weight(i: u32) -> vec4<f32> {\n  return vec4<f32>((vec4<i32>(i32(w[i])) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));\n}\n"
        }
        Dtype::Quantised(Bits::Int4) => {
            "fn four(codes: u32) -> vec4<f32> {\n  return vec4<f32>((vec4<i32>(i32(codes)) << vec4<u32>(28u, 24u, 20u, 16u)) >> vec4<u32>(28u));\n}\n"
        }
    };
    t += match epilogue {
        Epilogue::None | Epilogue::Add => "",
        Epilogue::Relu => "fn f(x: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>(0.0)); }\n",
        // The exponent is kept from overflowing.
        Epilogue::QuickGelu => {
            "fn f(x: vec4<f32>) -> vec4<f32> { return x / (1.0 + exp(min(-1.702 * x, vec4<f32>(80.0)))); }\n"
        }
        Epilogue::Swish => SWISH,
        Epilogue::Sigmoid => {
            "fn f(x: vec4<f32>) -> vec4<f32> { return 1.0 / (1.0 + exp(min(-x, vec4<f32>(80.0)))); }\n"
        }
        Epilogue::Gelu => GELU,
    };
    if slices > 1 {
        writeln!(
            t,
            "var<workgroup> part: array<vec4<f32>, {}>;",
            rows * columns * slices
        )
        .unwrap();
    }
    writeln!(
        t,
        "fn store(row: u32, column: u32, value: vec4<f32>) {{\n  if (row >= p.rows || column >= p.columns) {{ return; }}\n  \
         let at = (p.y_row + row) * p.y_stride + p.y_column + column;\n  y[at] = {};\n}}",
        match epilogue {
            Epilogue::None => "value",
            Epilogue::Add => "y[at] + value",
            _ => "f(value)",
        }
    )
    .unwrap();
    write!(t, "@compute @workgroup_size({columns}, {slices}) fn main{MAIN}").unwrap();
    // Threads beyond the last row or column compute it again and leave their result.
    writeln!(
        t,
        "  let first = group.y * {rows}u;\n  let column = group.x * {columns}u + thread.x;\n  \
         let at = p.w_column + min(column, p.columns - 1u);"
    )
    .unwrap();
    for i in 0..rows {
        writeln!(
            t,
            "  let x{i} = (p.x_row + min(first + {i}u, p.rows - 1u)) * p.x_stride;"
        )
        .unwrap();
        writeln!(t, "  var y{i} = vec4<f32>(0.0);").unwrap();
    }
    let (start, end) = match slices {
        1 => ("0u".into(), "p.depth".into()),
        _ => {
            writeln!(t, "  let share = (p.depth + {}u) / {slices}u;", slices - 1).unwrap();
            (
                "thread.y * share".to_owned(),
                "min((thread.y + 1u) * share, p.depth)".to_owned(),
            )
        }
    };
    writeln!(t, "  let end = {end};\n  for (var k = {start}; k < end; k++) {{").unwrap();
    if dtype == Dtype::Quantised(Bits::Int4) {
        // Two rows of W to each of its elements, eight times four of them to a scale.
        t += "    let scale = scales[k / 8u * p.w_stride + at];\n";
        for pair in 0..2 {
            writeln!(t, "    let c{pair} = w[(2u * k + {pair}u) * p.w_stride + at];").unwrap();
            writeln!(t, "    let w{} = scale * four(c{pair});", 2 * pair).unwrap();
            writeln!(t, "    let w{} = scale * four(c{pair} >> 16u);", 2 * pair + 1).unwrap();
        }
    } else {
        for k in 0..4 {
            writeln!(t, "    let w{k} = weight((4u * k + {k}u) * p.w_stride + at);").unwrap();
        }
    }
    for i in 0..rows {
        writeln!(t, "    let v{i} = x[x{i} + k];").unwrap();
        for (k, component) in ["x", "y", "z", "w"].iter().enumerate() {
            writeln!(t, "    y{i} = fma(vec4<f32>(v{i}.{component}), w{k}, y{i});").unwrap();
        }
    }
    t += "  }\n";
    // A column of eight bits has one scale.
    let scale = match dtype {
        Dtype::Quantised(Bits::Int8) => " * scales[at]",
        _ => "",
    };
    if slices == 1 {
        t += "  let bias = b[at];\n";
        for i in 0..rows {
            writeln!(t, "  store(first + {i}u, column, y{i}{scale} + bias);").unwrap();
        }
    } else {
        let tile = rows * columns;
        for i in 0..rows {
            writeln!(
                t,
                "  part[thread.y * {tile}u + {}u + thread.x] = y{i};",
                i * columns
            )
            .unwrap();
        }
        write!(
            t,
            "  workgroupBarrier();\n  for (var i = thread.y; i < {rows}u; i += {slices}u) {{\n    var sum = vec4<f32>(0.0);\n    \
             for (var j = 0u; j < {slices}u; j++) {{ sum += part[j * {tile}u + i * {columns}u + thread.x]; }}\n    \
             store(first + i, column, sum{scale} + b[at]);\n  }}\n"
        )
        .unwrap();
    }
    t + "}\n"
}

const SWISH: &str = "fn f(x: vec4<f32>) -> vec4<f32> { return x / (1.0 + exp(min(-x, vec4<f32>(80.0)))); }\n";

/// x (1 + erf(x / sqrt 2)) / 2, with the function that the processor's kernels use for erf.
const GELU: &str = "\
fn f(x: vec4<f32>) -> vec4<f32> {
  let z = clamp(x * 0.70710678, vec4<f32>(-4.0), vec4<f32>(4.0));
  let s = z * z;
  var n = vec4<f32>(-2.7261423e-10);
  n = fma(n, s, vec4<f32>(2.7706814e-8));
  n = fma(n, s, vec4<f32>(-2.101024e-6));
  n = fma(n, s, vec4<f32>(-5.6925065e-5));
  n = fma(n, s, vec4<f32>(-7.3499063e-4));
  n = fma(n, s, vec4<f32>(-2.9546e-3));
  n = fma(n, s, vec4<f32>(-1.6096033e-2));
  var d = vec4<f32>(-1.4566072e-5);
  d = fma(d, s, vec4<f32>(-2.1337406e-4));
  d = fma(d, s, vec4<f32>(-1.682827e-3));
  d = fma(d, s, vec4<f32>(-7.373329e-3));
  d = fma(d, s, vec4<f32>(-1.4264739e-2));
  let half = 0.5 * x;
  return fma(half, n * z / d, half);
}
";

/// A workgroup takes a row.
fn layer_norm(in_place: bool) -> String {
    let x = ("x", "vec4<f32>");
    let others = [("scale", "vec4<f32>"), ("shift", "vec4<f32>"), ("y", "vec4<f32>")];
    let buffers = match in_place {
        true => others.to_vec(),
        false => [&[x], &others[..]].concat(),
    };
    let x = if in_place { "y" } else { "x" };
    let n = NORM_THREADS;
    head(&["width", "epsilon", "y_row"], &buffers)
        + &format!(
            "var<workgroup> part: array<f32, {n}>;
fn total(thread: u32, own: vec4<f32>) -> f32 {{
  workgroupBarrier();
  part[thread] = own.x + own.y + own.z + own.w;
  workgroupBarrier();
  var sum = 0.0;
  for (var i = 0u; i < {n}u; i++) {{ sum += part[i]; }}
  return sum / f32(4u * p.width);
}}
@compute @workgroup_size({n}) fn main{MAIN}  let row = group.x * p.width;
  var sum = vec4<f32>(0.0);
  for (var i = thread.x; i < p.width; i += {n}u) {{ sum += {x}[row + i]; }}
  let mean = total(thread.x, sum);
  sum = vec4<f32>(0.0);
  for (var i = thread.x; i < p.width; i += {n}u) {{
    let d = {x}[row + i] - mean;
    sum = fma(d, d, sum);
  }}
  let factor = 1.0 / sqrt(total(thread.x, sum) + p.epsilon);
  for (var i = thread.x; i < p.width; i += {n}u) {{
    y[p.y_row * p.width + row + i] = ({x}[row + i] - mean) * factor * scale[i] + shift[i];
  }}
}}
"
        )
}

/// A thread takes a query through all keys, four at a time, and keeps the largest score so far, the sum of the
/// exponentials and the weighted values (Milakov and Gimelshein, arXiv 1805.02867). Its neighbours read the same keys.
/// A row holds all heads' queries, keys and values, in this order.
fn attention(queries: u32, query_width: u32, value_width: u32) -> String {
    const KEYS: u32 = 4;
    let mut t = head(
        &["heads", "scale"],
        &[("x", "vec4<f32>"), ("sequences", "vec4<u32>"), ("y", "vec4<f32>")],
    );
    write!(
        t,
        "@compute @workgroup_size({queries}) fn main{MAIN}  let sequence = sequences[group.z];
  let number = group.x * {queries}u + thread.x;
  if (number >= sequence.y) {{ return; }}
  let row = sequence.x + number;
  let key = sequence.z;
  let keys = sequence.w;
  let stride = p.heads * {}u;
  let k_column = p.heads * {query_width}u + group.y * {query_width}u;
  let v_column = p.heads * {}u + group.y * {value_width}u;
  let q_at = row * stride + group.y * {query_width}u;
  var highest = -3.0e38;
  var sum = 0.0;
",
        2 * query_width + value_width,
        2 * query_width,
    )
    .unwrap();
    for i in 0..query_width {
        writeln!(t, "  let q{i} = x[q_at + {i}u] * p.scale;").unwrap();
    }
    for i in 0..value_width {
        writeln!(t, "  var o{i} = vec4<f32>(0.0);").unwrap();
    }
    writeln!(t, "  for (var i = 0u; i < keys; i += {KEYS}u) {{").unwrap();
    for j in 0..KEYS {
        writeln!(t, "    let row{j} = (key + min(i + {j}u, keys - 1u)) * stride;").unwrap();
        writeln!(t, "    let k{j} = row{j} + k_column;").unwrap();
        let terms = (0..query_width).map(|i| format!("dot(q{i}, x[k{j} + {i}u])"));
        writeln!(t, "    var s{j} = {};", terms.collect::<Vec<_>>().join(" + ")).unwrap();
        if j > 0 {
            writeln!(t, "    s{j} = select(-3.0e38, s{j}, i + {j}u < keys);").unwrap();
        }
    }
    t += "    let before = highest;\n    highest = max(max(max(s0, s1), max(s2, s3)), highest);\n    let factor = exp(before - highest);\n";
    for j in 0..KEYS {
        writeln!(
            t,
            "    s{j} = exp(s{j} - highest);\n    let v{j} = row{j} + v_column;"
        )
        .unwrap();
    }
    t += "    sum = sum * factor + s0 + s1 + s2 + s3;\n";
    for i in 0..value_width {
        writeln!(
            t,
            "    o{i} = o{i} * factor + s0 * x[v0 + {i}u] + s1 * x[v1 + {i}u] + s2 * x[v2 + {i}u] + s3 * x[v3 + {i}u];"
        )
        .unwrap();
    }
    write!(
        t,
        "  }}\n  let y_at = (row * p.heads + group.y) * {value_width}u;\n  let weight = 1.0 / sum;\n"
    )
    .unwrap();
    for i in 0..value_width {
        writeln!(t, "  y[y_at + {i}u] = o{i} * weight;").unwrap();
    }
    t + "}\n"
}

fn first_rows() -> String {
    head(
        &["width"],
        &[("x", "vec4<f32>"), ("sequences", "vec4<u32>"), ("y", "vec4<f32>")],
    ) + &format!(
        "@compute @workgroup_size({COPY_THREADS}) fn main{MAIN}  let column = group.x * {COPY_THREADS}u + thread.x;
  if (column < p.width) {{ y[group.y * p.width + column] = x[sequences[group.y].z * p.width + column]; }}
}}
"
    )
}

/// A thread computes four channels of a pixel; its neighbours have the next ones. A row or column outside of the image
/// has a number below 0, which as a whole number without a sign is a large one.
fn convolution(kernel: u32, stride: u32, planes: u32) -> String {
    let (element, value) = match planes {
        1 => ("vec4<f32>", "x[(at * p.width + beside) * p.columns + column]"),
        _ => ("f32", "vec4<f32>(x[(plane * p.height + at) * p.width + beside])"),
    };
    let buffers = [
        ("x", element),
        ("w", "vec4<f32>"),
        ("b", "vec4<f32>"),
        ("y", "vec4<f32>"),
    ];
    head(
        &["height", "width", "columns", "out_width", "top", "left"],
        &buffers,
    ) + SWISH
        + &format!(
            "@compute @workgroup_size({COPY_THREADS}) fn main{MAIN}  let i = group.x * {COPY_THREADS}u + thread.x;
  if (i >= p.out_width * p.columns) {{ return; }}
  let column = i % p.columns;
  let across = i / p.columns * {stride}u - p.left;
  let down = group.y * {stride}u - p.top;
  var sum = b[column];
  for (var plane = 0u; plane < {planes}u; plane++) {{
    for (var j = 0u; j < {kernel}u; j++) {{
      let at = down + j;
      if (at >= p.height) {{ continue; }}
      for (var k = 0u; k < {kernel}u; k++) {{
        let beside = across + k;
        if (beside >= p.width) {{ continue; }}
        sum = fma({value}, w[((plane * {kernel}u + j) * {kernel}u + k) * p.columns + column], sum);
      }}
    }}
  }}
  y[group.y * p.out_width * p.columns + i] = f(sum);
}}
"
        )
}

/// A workgroup takes the columns over a share of the rows to one row.
fn mean() -> String {
    const N: u32 = MEAN_COLUMNS;
    head(
        &["rows", "columns", "share", "y_row", "scale"],
        &[("x", "vec4<f32>"), ("y", "vec4<f32>")],
    ) + &format!(
        "var<workgroup> part: array<vec4<f32>, {}>;
@compute @workgroup_size({N}, {N}) fn main{MAIN}  let own = group.x * {N}u + thread.x;
  let column = min(own, p.columns - 1u);
  let end = min((group.y + 1u) * p.share, p.rows);
  var sum = vec4<f32>(0.0);
  for (var i = group.y * p.share + thread.y; i < end; i += {N}u) {{ sum += x[i * p.columns + column]; }}
  part[thread.y * {N}u + thread.x] = sum;
  workgroupBarrier();
  if (thread.y == 0u && own < p.columns) {{
    for (var j = 1u; j < {N}u; j++) {{ sum += part[j * {N}u + thread.x]; }}
    y[(p.y_row + group.y) * p.columns + own] = sum * p.scale;
  }}
}}
",
        N * N
    )
}

/// Each workgroup in x takes part of a row, in y a row.
fn gate() -> String {
    head(
        &["columns", "row"],
        &[("factor", "vec4<f32>"), ("y", "vec4<f32>")],
    ) + &format!(
        "@compute @workgroup_size({COPY_THREADS}) fn main{MAIN}  let i = group.x * {COPY_THREADS}u + thread.x;
  if (i < p.row) {{ y[group.y * p.row + i] *= factor[i % p.columns]; }}
}}
"
    )
}
