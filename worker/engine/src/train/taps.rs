//! Where an objective looks inside two networks: after which unit of the one, and of the other.

use tl_proto::catalog::nearest_hint;

use super::net::Net;
use crate::{Error, Result, objective::Tap};

/// Units whose outputs are compared, in pairs.
#[derive(Clone, Debug, Default)]
pub struct Taps {
    /// Of the network that is trained.
    pub own: Vec<usize>,
    /// Of the teacher.
    pub teacher: Vec<usize>,
    /// What they are called, and the shapes of one sample there.
    pub about: Vec<Tap>,
}

impl Taps {
    /// The pairs that a job names as `UNIT` or `UNIT:UNIT`. Where it names none: of each size of maps that both networks
    /// have, the last units; maps of one place are none.
    ///
    /// # Errors
    /// Networks for text or drawings, a unit that is not there, networks without maps of the same size.
    pub fn resolve(named: &[String], student: &Net, teacher: &Net) -> Result<Self> {
        if let Some(net) = [student, teacher].into_iter().find(|net| !net.contract.has_pixels()) {
            let reads = if net.backbone.reads_text() { "text" } else { "drawings" };
            return Err(Error::user(
                format!("the objective compares maps of images, and {} reads {reads}", net.backbone.name),
                "name another `objective.method`",
            ));
        }
        let shapes = [student.shapes(&student.network.initial)?, teacher.shapes(&teacher.network.initial)?];
        let pairs = match named {
            [] => of_one_size(&shapes),
            named => named.iter().map(|one| pair(one, student, teacher)).collect::<Result<_>>()?,
        };
        if pairs.is_empty() {
            return Err(Error::user(
                format!("{} and {} have no maps of the same size", student.backbone.name, teacher.backbone.name),
                "name units of both in `objective.taps`, as \"UNIT:UNIT\"",
            ));
        }
        let mut taps = Self::default();
        for [own, theirs] in pairs {
            let names = [&student.network.units[own], &teacher.network.units[theirs]].map(|unit| unit.name.clone());
            taps.about.push(Tap { names, shapes: [shapes[0][own].clone(), shapes[1][theirs].clone()] });
            taps.own.push(own);
            taps.teacher.push(theirs);
        }
        Ok(taps)
    }

    /// Refuses a stage that does not reach what it is to change.
    ///
    /// # Errors
    /// Names a unit below `cut`.
    pub fn are_reached(&self, cut: usize, stage: &str) -> Result<()> {
        match self.own.iter().zip(&self.about).find(|(own, _)| **own < cut) {
            None => Ok(()),
            Some((_, tap)) => Err(Error::user(
                format!("stage `{stage}` trains nothing up to `{}`, whose output the objective compares", tap.names[0]),
                "train more, or name other units in `objective.taps`",
            )),
        }
    }
}

/// The last unit of each size of maps that both have. What is one place says nothing of where: a small picture is that deep
/// in a network.
fn of_one_size(shapes: &[Vec<Vec<usize>>; 2]) -> Vec<[usize; 2]> {
    let last = |shapes: &[Vec<usize>], size: &[usize]| shapes.iter().rposition(|s| s.len() == 3 && s[..2] == *size);
    let maps = |s: &[usize]| s.len() == 3 && s[0] * s[1] > 1;
    let own = shapes[0].iter().enumerate().filter(|(i, s)| maps(s) && last(&shapes[0], &s[..2]) == Some(*i));
    own.filter_map(|(i, s)| Some([i, last(&shapes[1], &s[..2])?])).collect()
}

fn pair(named: &str, student: &Net, teacher: &Net) -> Result<[usize; 2]> {
    let (own, theirs) = named.split_once(':').unwrap_or((named, named));
    let find = |net: &Net, name: &str| {
        // What comes out of the last one are logits.
        let units = net.network.units.split_last().map(|(_, below)| below).unwrap_or_default();
        units.iter().position(|unit| unit.name == name).ok_or_else(|| {
            let known: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
            let message = format!("`{name}` of `objective.taps` is no unit of {} below its last", net.backbone.name);
            Error::user(message, nearest_hint(name, &known))
        })
    };
    Ok([find(student, own)?, find(teacher, theirs)?])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tl_proto::spec::ModelSection;

    use super::*;

    fn net(backbone: &str) -> Net {
        let model = ModelSection { backbone: backbone.into(), input: Some(32), ..ModelSection::default() };
        Net::build(&model, &["a".into(), "b".into()], false, 1, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn maps_of_the_same_size_are_compared_where_nothing_is_named() {
        let taps = Taps::resolve(&[], &net("small_cnn"), &net("resnet20")).unwrap();
        let names: Vec<_> = taps.about.iter().map(|tap| tap.names.each_ref().map(String::as_str)).collect();
        assert_eq!(names, [["block0", "layer1.2"], ["block1", "layer2.2"], ["block2", "layer3.2"]]);
        assert_eq!(taps.about[1].shapes, [vec![16, 16, 32], vec![16, 16, 32]]);
        taps.are_reached(0, "all").unwrap();
        // What is 1x1 at this side is left out.
        let deep = Taps::resolve(&[], &net("resnet18"), &net("resnet18")).unwrap();
        let sides = |net: &Net| {
            let shapes = net.shapes(&net.network.initial).unwrap();
            shapes.into_iter().filter(|s| s.len() == 3).map(|s| s[0] * s[1]).collect::<Vec<_>>()
        };
        assert!(sides(&net("resnet18")).contains(&1), "the test is of a network that goes that deep");
        assert!(deep.about.len() > 1 && deep.about.iter().all(|tap| tap.shapes[0][0] * tap.shapes[0][1] > 1));
        let error = taps.are_reached(1, "top").unwrap_err().to_string();
        assert!(error.contains("stage `top` trains nothing up to `block0`"), "{error}");
    }

    #[test]
    fn a_unit_that_is_not_there_is_named() {
        let resolve = |named: &str| Taps::resolve(&[named.to_owned()], &net("small_cnn"), &net("resnet20"));
        let taps = resolve("block3:layer3.0").unwrap();
        assert_eq!((taps.own[0], &taps.about[0].shapes[1]), (3, &vec![8, 8, 64]));
        for (named, wrong) in [("block1", "block1"), ("blok1:layer1.0", "blok1"), ("fc:layer1.0", "fc")] {
            let error = resolve(named).unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}` of `objective.taps` is no unit")), "{error}");
        }
    }
}
