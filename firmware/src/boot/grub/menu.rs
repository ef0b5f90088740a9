//! The menu that a configuration makes, and which entry is its default.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::run::{Content, Grub, Item};
use crate::Result;
use crate::boot::{Menu, Volume, bls};

/// Runs the configuration at `path` of `volumes[root]`; gives its menu, and what is worth saying about it.
///
/// # Errors
/// When it cannot be read, or is not in GRUB's language.
pub fn read(volumes: &[Volume], root: usize, path: &str) -> Result<(Menu, Vec<String>)> {
    let (prefix, _) = path.rsplit_once('/').unwrap_or_default();
    let mut grub = Grub::new(volumes, root, prefix);
    let name = volumes
        .get(root)
        .map(|volume| volume.name.clone())
        .unwrap_or_default();
    grub.source(&format!("({name}){path}"))
        .map_err(|error| error.at(path))?;
    let default = default(&grub.items, grub.get("default"));
    let mut menu = Menu::default();
    flatten(&grub.items, &mut Vec::new(), &default, &mut menu);
    Ok((menu, grub.notes))
}

/// Where in the menu the default is: an index for each level.
///
/// `wanted` names, level by level with `>` between, a title, an id or a number. What names nothing is the first.
fn default(items: &[Item], wanted: &str) -> Vec<usize> {
    let here = |name: &str| {
        let named = items
            .iter()
            .position(|item| item.id == name || item.title == name);
        named.or_else(|| name.parse().ok().filter(|index| *index < items.len()))
    };
    // A title may have the sign in it, so the longest name that is there is taken.
    let cuts = wanted.rmatch_indices('>').map(|(at, _)| at);
    let found = [wanted.len()].into_iter().chain(cuts).find_map(|at| {
        let (name, rest) = wanted.split_at(at);
        Some((here(name)?, rest.trim_start_matches('>').to_string()))
    });
    let (index, rest) = found.unwrap_or_default();
    let mut path = alloc::vec![index];
    if let Some(Item {
        content: Content::Menu(items),
        ..
    }) = items.get(index)
    {
        path.extend(default(items, &rest));
    }
    path
}

/// Appends the entries of `items` to `menu`, those of submenus in their place.
fn flatten(items: &[Item], here: &mut Vec<usize>, default: &[usize], menu: &mut Menu) {
    for (i, item) in items.iter().enumerate() {
        here.push(i);
        match &item.content {
            Content::Entry(entry) => {
                if here == default {
                    menu.default = menu.entries.len();
                }
                menu.entries.push(entry.clone());
            }
            Content::Menu(items) => flatten(items, here, default, menu),
            Content::Nothing => {}
        }
        here.pop();
    }
}

/// `blscfg`: the entries of the boot loader specification become the menu's.
pub fn specified(grub: &mut Grub<'_>) -> bool {
    let named = grub.get("blsdir").to_string();
    let places = [named.as_str(), "/loader/entries", "/boot/loader/entries"];
    for place in places.into_iter().filter(|place| !place.is_empty()) {
        let Some(file) = grub.file(place) else {
            continue;
        };
        let variable = |name: &str| grub.variables.get(name).map(String::from);
        let found = bls::read(grub.volumes, file.volume, &file.path, variable, &mut grub.notes);
        if found.is_empty() {
            continue;
        }
        for bls::Specified { entry, .. } in found {
            grub.items.push(Item {
                title: entry.title.clone(),
                id: entry.id.clone(),
                content: Content::Entry(entry),
            });
        }
        return true;
    }
    false
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
