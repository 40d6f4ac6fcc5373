//! Files as Keras writes them: every tensor of every network finds its place, in all three layouts.
//!
//! The list of layers is Keras' own, with our names beside them, as `tests/parity/keras_layers.py` has stored it; what lies
//! under those names computes what Keras computes, as the golden figures prove.

use std::{collections::BTreeMap, path::Path};

use hdf5_pure::{AttrValue, FileBuilder};
use tl_engine::{
    backbone::{Network, find},
    nn::{self, Pass, Store, Tape, host},
    weights::{self, keras},
};
use tl_proto::spec::HeadSection;

use crate::rule;

/// A variable of a layer: what Keras calls it, and its shape there.
type Variables = Vec<(String, Vec<usize>)>;

/// A layer of the list.
struct Row {
    layer: String,
    class: String,
    ours: String,
    variables: Variables,
}

fn list() -> BTreeMap<String, Vec<Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/keras_layers.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let (mut out, mut network) = (BTreeMap::<String, Vec<Row>>::new(), String::new());
    for line in text.lines() {
        let mut words = line.split(' ').map(str::to_owned);
        let (layer, class) = (words.next().unwrap(), words.next().unwrap());
        if layer == "=" {
            network = class;
            continue;
        }
        let ours = words.next().unwrap();
        let variable = |word: String| {
            let (name, shape) = word.split_once(':').unwrap();
            (name.to_owned(), shape.split('x').map(|d| d.parse().unwrap()).collect())
        };
        let variables = words.map(variable).collect();
        out.entry(network.clone()).or_default().push(Row { layer, class, ours, variables });
    }
    out
}

/// The network with as many classes as the list's; batch-norms and padding are Keras'.
fn network(backbone: &str) -> Network {
    let contract = keras::contract(backbone, 96).unwrap().unwrap();
    Network::build(find(backbone).unwrap(), &contract, &HeadSection::default(), 10, 1)
}

/// The values of a variable of ours in Keras' order.
fn theirs(store: &Store, row: &Row, (name, shape): &(String, Vec<usize>)) -> Vec<f32> {
    let depthwise = name == "depthwise_kernel" || row.class == "depthwise_conv2d";
    let kind = match name.as_str() {
        "gamma" | "kernel" => "weight",
        "beta" | "bias" => "bias",
        "moving_mean" => "running_mean",
        "moving_variance" => "running_var",
        "depthwise_kernel" if row.class == "separable_conv2d" => "depthwise.weight",
        "depthwise_kernel" => "weight",
        "pointwise_kernel" => "pointwise.weight",
        _ => panic!("{name}"),
    };
    let full = format!("{}.{kind}", row.ours);
    let find = |list: &[nn::Entry]| list.iter().find(|e| e.name == full).map(|e| e.range.clone());
    let values = match (find(&store.params), find(&store.buffers)) {
        (Some(range), _) => &store.values[range],
        (_, Some(range)) => &store.buffer_values[range],
        _ => panic!("there is no {full}"),
    };
    match shape[..] {
        [h, w, i, o] if !depthwise => {
            let at = |n: usize| {
                let (y, x, c, f) = (n / (w * i * o), n / (i * o) % w, n / o % i, n % o);
                values[((f * i + c) * h + y) * w + x]
            };
            (0..values.len()).map(at).collect()
        }
        [h, w, c, 1] => (0..values.len()).map(|n| values[(n % c * h + n / (w * c)) * w + n / c % w]).collect(),
        [i, o] => (0..values.len()).map(|n| values[n % o * i + n / o]).collect(),
        _ => values.to_vec(),
    }
}

/// How Keras lays a file out.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Weights alone, to its second version, with TensorFlow's numbers.
    Old,
    /// A model with its weights.
    Model,
    /// `.weights.h5` of the third version.
    Numbered,
}

fn write(path: &Path, store: &Store, rows: &[Row], layout: Layout) {
    let mut file = FileBuilder::new();
    match layout {
        Layout::Old => {
            for row in rows {
                let mut group = file.create_group(&row.layer);
                // A layer that was made twice in a session.
                let mut inner = group.create_group(&format!("{}_1", row.layer));
                for v in &row.variables {
                    // What the third version calls a kernel like any other.
                    let name = if row.class == "depthwise_conv2d" { "depthwise_kernel" } else { v.0.as_str() };
                    let shape: Vec<u64> = v.1.iter().map(|d| *d as u64).collect();
                    inner.create_dataset(&format!("{name}:0")).with_f32_data(&theirs(store, row, v)).with_shape(&shape);
                }
                group.add_group(inner.finish());
                file.add_group(group.finish());
            }
        }
        Layout::Model => {
            let mut weights = file.create_group("model_weights");
            for row in rows {
                let mut group = weights.create_group(&row.layer);
                let mut inner = group.create_group(&row.layer);
                for v in &row.variables {
                    let shape: Vec<u64> = v.1.iter().map(|d| *d as u64).collect();
                    inner.create_dataset(&v.0).with_f32_data(&theirs(store, row, v)).with_shape(&shape);
                }
                group.add_group(inner.finish());
                weights.add_group(group.finish());
            }
            file.add_group(weights.finish());
        }
        Layout::Numbered => {
            let mut layers = file.create_group("layers");
            let mut seen = BTreeMap::<&str, usize>::new();
            for row in rows {
                let n = seen.entry(&row.class).or_default();
                let class = if *n == 0 { row.class.clone() } else { format!("{}_{n}", row.class) };
                *n += 1;
                let mut group = layers.create_group(&class);
                let mut vars = group.create_group("vars");
                vars.set_attr("name", AttrValue::VarLenString(row.layer.clone()));
                for (i, v) in row.variables.iter().enumerate() {
                    let shape: Vec<u64> = v.1.iter().map(|d| *d as u64).collect();
                    vars.create_dataset(&i.to_string()).with_f32_data(&theirs(store, row, v)).with_shape(&shape);
                }
                group.add_group(vars.finish());
                layers.add_group(group.finish());
            }
            file.add_group(layers.finish());
        }
    }
    file.write(path).unwrap();
}

/// Networks of the list.
const NETWORKS: [&str; 4] = ["efficientnet_b0_keras", "mobilenet_v2", "nasnet_mobile", "resnet50_keras"];

#[test]
fn every_tensor_of_keras_files_finds_its_place_in_every_layout() {
    let dir = tempfile::tempdir().unwrap();
    let list = list();
    assert_eq!(list.keys().collect::<Vec<_>>(), NETWORKS);
    for (backbone, rows) in &list {
        let network = network(backbone);
        let mut store = network.initial.clone();
        rule::fill(&mut store);
        for layout in [Layout::Old, Layout::Model, Layout::Numbered] {
            let path = dir.path().join("net.h5");
            write(&path, &store, rows, layout);
            let size = std::fs::metadata(&path).unwrap().len();
            let found = keras::usual_names(backbone, keras::read(&path, size).unwrap(), &network.initial).unwrap();
            let (mut filled, constant) = (network.initial.clone(), |name: &str| name.starts_with("normalization."));
            weights::fill(&mut filled, &found, |name| !constant(name), backbone).unwrap();
            assert!(filled.values == store.values, "{backbone}, {layout:?}");
            assert!(filled.buffer_values == store.buffer_values, "{backbone}, {layout:?}");
        }
    }
}

/// Files that Keras itself has written, and the logits that it computed: `keras_layers.py FOLDER` makes them.
#[test]
fn keras_files_on_this_machine_compute_what_keras_computes() {
    let Some(folder) = std::env::var_os("TL_KERAS_H5") else { return };
    let folder = Path::new(&folder);
    let floats = |name: String| -> Vec<f32> {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    for backbone in NETWORKS {
        let want = floats(format!("{backbone}.logits.f32"));
        for layout in ["legacy", "model", "weights"] {
            let mut network = network(backbone);
            let path = folder.join(format!("{backbone}.{layout}.h5"));
            let size = std::fs::metadata(&path).unwrap().len();
            let found = keras::usual_names(backbone, keras::read(&path, size).unwrap(), &network.initial).unwrap();
            weights::fill(&mut network.initial, &found, |_| true, backbone).unwrap();
            let x = nn::array(floats(format!("{backbone}.input.f32")), &[1, 96, 96, 3]).unwrap();
            let (pass, mut tape) = (Pass::eval(&network.initial), Tape::default());
            let forward = |x, unit: &tl_engine::backbone::Unit| nn::Layer::forward(&unit.layer, &x, &pass, &mut tape);
            let logits = network.units.iter().try_fold(x, forward).unwrap();
            let scale = want.iter().fold(0.0f32, |s, v| s.max(v.abs()));
            let worst = host(&logits).unwrap().iter().zip(&want).fold(0.0f32, |w, (a, b)| w.max((a - b).abs()));
            println!("{backbone}, {layout}: {:e} of the largest logit", worst / scale);
            assert!(worst < 1e-4 * scale, "{backbone}, {layout}: {worst} of {scale}");
        }
    }
}
