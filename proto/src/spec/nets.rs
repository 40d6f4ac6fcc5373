//! Further networks of a job, by role. Of some roles there may be several: `teacher`, `teacher_2`, `teacher_3` and so on.

use super::{
    JobSpec, ModelSection,
    check::{Checked, require},
};
use crate::catalog::Entry;

impl JobSpec {
    /// The networks of a role in their order, with what they are called.
    pub fn nets_of<'a>(&'a self, role: &str) -> Vec<(&'a str, &'a ModelSection)> {
        let named = |name: &str| self.nets.get_key_value(name).map(|(name, net)| (name.as_str(), net));
        let Some(first) = named(role) else { return Vec::new() };
        let more = (2..).map_while(|n| named(&format!("{role}_{n}")));
        [first].into_iter().chain(more).collect()
    }
}

/// Every role that a kind of job needs is there, and no other; several networks of a role are counted without a gap.
pub(super) fn check_nets(spec: &JobSpec, objective: &Entry) -> Checked {
    for role in &objective.nets {
        require(spec.nets.contains_key(role), || {
            (format!("`{}` needs a network `[nets.{role}]`", spec.job.kind), "give it a backbone and weights".into())
        })?;
    }
    for name in spec.nets.keys() {
        let of_role = |role: &String| spec.nets_of(role).iter().any(|(known, _)| known == name);
        let one = objective.nets.contains(name);
        require(one || objective.several.iter().any(of_role), || {
            let hint = match objective.several.iter().find(|role| name.starts_with(role.as_str())) {
                Some(role) => format!("several are called `nets.{role}`, `nets.{role}_2`, `nets.{role}_3` and so on"),
                None => String::new(),
            };
            (format!("`{}` has no use for `nets.{name}`", spec.job.kind), hint)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::entry, spec::parse};

    #[test]
    fn several_networks_of_a_role_are_counted_without_a_gap() {
        let check = |nets: &[&str], several: &[&str]| {
            let text = "schema = 1\njob = { name = \"t\", kind = \"distill\" }\n".to_owned();
            let nets = nets.iter().map(|n| format!("[nets.{n}]\nbackbone = \"b\"\n")).collect::<String>();
            let spec = parse(&(text + &nets)).unwrap();
            let several = several.iter().map(|s| (*s).to_owned()).collect();
            let objective = Entry { nets: vec!["teacher".into()], several, ..entry("distill", "") };
            check_nets(&spec, &objective).map(|()| spec.nets_of("teacher").len()).map_err(|e| e.to_string() + &e.hint)
        };
        assert_eq!(check(&["teacher_3", "teacher", "teacher_2"], &["teacher"]), Ok(3));
        let eleven: Vec<String> = (2..12).map(|n| format!("teacher_{n}")).collect();
        let eleven: Vec<&str> = ["teacher"].into_iter().chain(eleven.iter().map(String::as_str)).collect();
        assert_eq!(check(&eleven, &["teacher"]), Ok(11));
        let gap = check(&["teacher", "teacher_3"], &["teacher"]).unwrap_err();
        assert!(gap.contains("no use for `nets.teacher_3`") && gap.contains("`nets.teacher_2`"), "{gap}");
        assert!(check(&["teacher", "teacher_2"], &[]).is_err());
        assert!(check(&["teacher_2"], &["teacher"]).unwrap_err().contains("needs a network `[nets.teacher]`"));
        assert!(check(&["teacher", "judge"], &["teacher"]).unwrap_err().contains("no use for `nets.judge`"));
    }
}
