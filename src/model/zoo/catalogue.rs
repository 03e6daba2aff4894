//! The networks that candle-transformers has as image classifiers, as a table.
//!
//! Preprocessing is that of each network's default checkpoint in timm 1.0.31 (`default_cfg`); the names of the
//! tensors are timm's. A network is in the table only if its logits agreed with timm's on shared random weights;
//! `docs/other-networks.md` tells how that was seen and which networks of candle-transformers did not pass.
//!
//! **Invariant**: the rows are those of [`super::NAMES`], in the same order.
use super::names;
use crate::model::network::{Filter, Preprocessing};
use candle_core::Result;
use candle_nn::{Func, Module, VarBuilder};
use candle_transformers::models::efficientnet::{EfficientNet, MBConvConfig};
use candle_transformers::models::{convmixer, convnext, fastvit, mobilenetv4, mobileone, repvgg, resnet};

#[cfg(test)]
mod tests;

/// A network that is ready to run: images `[N, 3, height, width]` to logits `[N, classes]`.
pub(super) type Built = Box<dyn Module + Send + Sync>;

/// One network.
pub(super) struct Entry {
    /// Name on the command line, in answers and of the weights file.
    pub(super) name: &'static str,
    /// Tensors in a published file, counters of training steps not counted.
    pub(super) tensors: usize,
    /// Prefix of the classifier's `.weight`, whose first dimension is the number of classes.
    pub(super) head: &'static str,
    /// Photo to input.
    pub(super) preprocessing: Preprocessing,
    /// What timm calls a tensor that candle-transformers asks for under another name.
    pub(super) timm_name: fn(&str) -> String,
    /// Builds the network with so many classes from its tensors.
    pub(super) build: fn(usize, VarBuilder<'static>) -> Result<Built>,
}

impl Entry {
    /// Replaces the rule for the names.
    const fn named(mut self, timm_name: fn(&str) -> String) -> Self {
        self.timm_name = timm_name;
        self
    }
}

/// Shorthand for the rows below.
const fn entry(
    name: &'static str,
    tensors: usize,
    head: &'static str,
    preprocessing: Preprocessing,
    build: fn(usize, VarBuilder<'static>) -> Result<Built>,
) -> Entry {
    Entry { name, tensors, head, preprocessing, timm_name: names::same, build }
}

/// Short side, side of the crop, filter; ImageNet's mean and deviation, which all these networks use.
const fn photo(resize: u32, crop: u32, filter: Filter) -> Preprocessing {
    Preprocessing {
        resize,
        crop,
        filter,
        normalisation: crate::model::network::MOBILENET_V2.preprocessing.normalisation,
    }
}

fn boxed(network: Result<Func<'static>>) -> Result<Built> {
    network.map(|network| Box::new(network) as Built)
}

fn efficientnet(configuration: Vec<MBConvConfig>, classes: usize, vb: VarBuilder<'static>) -> Result<Built> {
    Ok(Box::new(EfficientNet::new(vb, configuration, classes)?))
}

/// Every network, by family.
pub(super) static CATALOGUE: [Entry; 52] = [
    entry("resnet18", 102, "fc", photo(235, 224, Filter::Bicubic), |n, vb| boxed(resnet::resnet18(n, vb))),
    entry("resnet34", 182, "fc", photo(235, 224, Filter::Bicubic), |n, vb| boxed(resnet::resnet34(n, vb))),
    entry("resnet50", 267, "fc", photo(235, 224, Filter::Bicubic), |n, vb| boxed(resnet::resnet50(n, vb))),
    entry("resnet101", 522, "fc", photo(235, 224, Filter::Bicubic), |n, vb| boxed(resnet::resnet101(n, vb))),
    entry("resnet152", 777, "fc", photo(235, 224, Filter::Bicubic), |n, vb| boxed(resnet::resnet152(n, vb))),
    entry("efficientnet-b0", 311, "classifier.1", photo(256, 224, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b0(), n, vb)
    })
    .named(names::efficientnet),
    entry("efficientnet-b1", 439, "classifier.1", photo(272, 240, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b1(), n, vb)
    })
    .named(names::efficientnet),
    entry("efficientnet-b2", 439, "classifier.1", photo(292, 260, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b2(), n, vb)
    })
    .named(names::efficientnet),
    entry("efficientnet-b3", 496, "classifier.1", photo(331, 300, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b3(), n, vb)
    })
    .named(names::efficientnet),
    entry("efficientnet-b4", 610, "classifier.1", photo(412, 380, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b4(), n, vb)
    })
    .named(names::efficientnet),
    entry("efficientnet-b5", 738, "classifier.1", photo(488, 456, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b5(), n, vb)
    })
    .named(names::efficientnet),
    entry("efficientnet-b6", 852, "classifier.1", photo(560, 528, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b6(), n, vb)
    })
    .named(names::efficientnet),
    entry("efficientnet-b7", 1037, "classifier.1", photo(632, 600, Filter::Bicubic), |n, vb| {
        efficientnet(MBConvConfig::b7(), n, vb)
    })
    .named(names::efficientnet),
    entry("mobilenetv4-conv-small", 232, "classifier", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(mobilenetv4::mobilenetv4(&mobilenetv4::Config::small(), n, vb))
    }),
    entry("mobilenetv4-conv-medium", 387, "classifier", photo(269, 256, Filter::Bicubic), |n, vb| {
        boxed(mobilenetv4::mobilenetv4(&mobilenetv4::Config::medium(), n, vb))
    }),
    entry("mobilenetv4-conv-large", 512, "classifier", photo(404, 384, Filter::Bicubic), |n, vb| {
        boxed(mobilenetv4::mobilenetv4(&mobilenetv4::Config::large(), n, vb))
    }),
    entry("mobilenetv4-hybrid-medium", 536, "classifier", photo(269, 256, Filter::Bicubic), |n, vb| {
        boxed(mobilenetv4::mobilenetv4(&mobilenetv4::Config::hybrid_medium(), n, vb))
    }),
    entry("mobilenetv4-hybrid-large", 666, "classifier", photo(404, 384, Filter::Bicubic), |n, vb| {
        boxed(mobilenetv4::mobilenetv4(&mobilenetv4::Config::hybrid_large(), n, vb))
    }),
    entry("mobileone-s1", 463, "head.fc", photo(248, 224, Filter::Bilinear), |n, vb| {
        boxed(mobileone::mobileone(&mobileone::Config::s1(), n, vb))
    }),
    entry("mobileone-s2", 463, "head.fc", photo(248, 224, Filter::Bilinear), |n, vb| {
        boxed(mobileone::mobileone(&mobileone::Config::s2(), n, vb))
    }),
    entry("mobileone-s3", 463, "head.fc", photo(248, 224, Filter::Bilinear), |n, vb| {
        boxed(mobileone::mobileone(&mobileone::Config::s3(), n, vb))
    }),
    entry("mobileone-s4", 511, "head.fc", photo(248, 224, Filter::Bilinear), |n, vb| {
        boxed(mobileone::mobileone(&mobileone::Config::s4(), n, vb))
    }),
    entry("convnext-atto", 128, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::atto(), n, vb))
    }),
    entry("convnext-femto", 128, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::femto(), n, vb))
    }),
    entry("convnext-pico", 128, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::pico(), n, vb))
    }),
    entry("convnext-nano", 146, "head.fc", photo(235, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::nano(), n, vb))
    }),
    entry("convnext-tiny", 182, "head.fc", photo(235, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::tiny(), n, vb))
    }),
    entry("convnext-small", 344, "head.fc", photo(235, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::small(), n, vb))
    }),
    entry("convnext-base", 344, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::base(), n, vb))
    }),
    entry("convnext-large", 344, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::large(), n, vb))
    }),
    entry("convnextv2-atto", 140, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::atto(), n, vb))
    }),
    entry("convnextv2-femto", 140, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::femto(), n, vb))
    }),
    entry("convnextv2-pico", 140, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::pico(), n, vb))
    }),
    entry("convnextv2-nano", 160, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::nano(), n, vb))
    }),
    entry("convnextv2-tiny", 200, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::tiny(), n, vb))
    }),
    entry("convnextv2-base", 380, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::base(), n, vb))
    }),
    entry("convnextv2-large", 380, "head.fc", photo(256, 224, Filter::Bicubic), |n, vb| {
        boxed(convnext::convnext(&convnext::Config::large(), n, vb))
    }),
    entry("convmixer-1536-20", 248, "25", photo(233, 224, Filter::Bicubic), |n, vb| {
        boxed(convmixer::c1536_20(n, vb))
    })
    .named(names::convmixer),
    entry("convmixer-1024-20-ks9-p14", 248, "25", photo(233, 224, Filter::Bicubic), |n, vb| {
        boxed(convmixer::c1024_20(n, vb))
    })
    .named(names::convmixer),
    entry("repvgg-a0", 290, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::a0(), n, vb))
    }),
    entry("repvgg-a1", 290, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::a1(), n, vb))
    }),
    entry("repvgg-a2", 290, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::a2(), n, vb))
    }),
    entry("repvgg-b0", 374, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::b0(), n, vb))
    }),
    entry("repvgg-b1", 374, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::b1(), n, vb))
    }),
    entry("repvgg-b2", 374, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::b2(), n, vb))
    }),
    entry("repvgg-b3", 374, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::b3(), n, vb))
    }),
    entry("repvgg-b1g4", 374, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::b1g4(), n, vb))
    }),
    entry("repvgg-b2g4", 374, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::b2g4(), n, vb))
    }),
    entry("repvgg-b3g4", 374, "head.fc", photo(256, 224, Filter::Bilinear), |n, vb| {
        boxed(repvgg::repvgg(&repvgg::Config::b3g4(), n, vb))
    }),
    entry("fastvit-t8", 392, "head.fc", photo(284, 256, Filter::Bicubic), |n, vb| {
        boxed(fastvit::fastvit(&fastvit::Config::t8(), n, vb))
    }),
    entry("fastvit-t12", 450, "head.fc", photo(284, 256, Filter::Bicubic), |n, vb| {
        boxed(fastvit::fastvit(&fastvit::Config::t12(), n, vb))
    }),
    entry("fastvit-s12", 450, "head.fc", photo(284, 256, Filter::Bicubic), |n, vb| {
        boxed(fastvit::fastvit(&fastvit::Config::s12(), n, vb))
    }),
];
