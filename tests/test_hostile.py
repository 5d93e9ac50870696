"""Every kind of hostile input that a reader must survive, and the cases that are tried: one table over all readers."""
import inspect
from collections.abc import Iterator
from types import ModuleType

import pytest

import test_brats_full
import test_chest_xray
import test_data
import test_data_check
import test_fundus
import test_lung_ct
import test_nodules

MODULES = {m.__name__.removeprefix("test_"): m for m in (
    test_brats_full, test_chest_xray, test_data, test_data_check, test_fundus, test_lung_ct, test_nodules)}

KINDS = {  # of hostile input -> cases (a file's test, and a part of the case's name), or whole tests
    "truncated .nii.gz": ["data_check.truncated", "data.truncated"],
    "truncated .mha": ["brats_full.truncated"],
    "truncated .mhd": ["nodules.cut_header"],
    "truncated .raw": ["nodules.truncated_raw", "nodules.test_a_file_that_shrinks_while_it_is_read"],
    "truncated .tif": ["lung_ct.truncated", "fundus.truncated image"],
    "truncated .gif": ["fundus.truncated label"],
    "truncated .jpeg, .jpg": ["chest_xray.truncated", "fundus.truncated"],
    "truncated .png": ["nodules.lidc_cut"],
    "truncated .csv": ["nodules.cut_table"],
    "zero bytes": ["data_check.zero_bytes", "brats_full.zero_bytes", "lung_ct.zero_bytes", "nodules.zero_bytes",
                   "fundus.zero bytes", "chest_xray.test_an_empty_file_is_named", "nodules.empty_table"],
    "wrong magic": ["data_check.wrong_magic", "data.no_nifti", "brats_full.wrong_magic", "fundus.PNG named tif",
                    "chest_xray.another_format", "lung_ct.wrong_magic", "nodules.no_header"],
    "a header that claims 10^6 cubed": ["brats_full.absurd_size", "nodules.huge", "nodules.lidc_huge", "lung_ct.huge_header",
                                        "fundus.a million squared", "data_check.huge", "chest_xray.absurd"],
    "no .raw beside .mhd": ["nodules.no_raw"],
    "NaN": ["data_check.not_finite_nan", "data.with_nan", "brats_full.with_nan", "lung_ct.with_nan", "nodules.real_nan"],
    "infinity": ["data_check.not_finite_inf", "lung_ct.with_infinity", "nodules.diameterY_inf"],
    "constant image": ["data_check.constant", "brats_full.constant", "fundus.constant", "chest_xray.constant", "lung_ct.constant",
                       "nodules.constant"],
    "modalities of different affine": ["data_check.other_affine", "data.other_affine", "brats_full.other_spacing"],
    "modalities of different shape": ["data_check.other_shape", "brats_full.other_shape", "data.brats_shape"],
    "label outside the image": ["fundus.label outside the field", "nodules.coordX_5000", "nodules.x1_4000"],
    "unknown class": ["data_check.unknown_class", "data.brats_class", "brats_full.wrong_class", "fundus.unknown classes",
                      "nodules.label_7", "chest_xray.unknown_name"],
    "CSV with a missing column": ["nodules.no_column"],
    "CSV with a bad number": ["nodules.coordX_abc", "nodules.coordZ_nan", "nodules.y1_x"],
    "CSV with an unknown series": ["nodules.vanished", "nodules.test_unknown_series_are_counted_in_one_short_warning"],
    "symlink loop": ["data_check.a_loop", "data_check.linked_to_itself", "data_check.linked_round", "fundus.a link to itself",
                     "chest_xray.loop", "lung_ct.a_loop", "brats_full.test_a_loop_of_links_ends"],
    "names with spaces and letters beyond ASCII": ["brats_full.test_odd_names", "chest_xray.unknown_name",
                                                   "data_check.upper_case"],
    "upper-case extensions": ["data_check.upper_case", "fundus.upper_case", "brats_full.test_odd_names",
                              "nodules.test_upper_case_extensions_and_windows_lines",
                              "lung_ct.test_upper_case_grey_as_rgb_and_sixteen_bits_are_read"],
    "read-only folder": ["data_check.test_a_read_only_folder_is_refused",
                         "chest_xray.test_a_file_that_cannot_be_opened_is_named"],
    "a file that vanishes while reading": ["data_check.test_a_file_that_vanishes", "fundus.a file that vanished",
                                           "chest_xray.test_a_file_that_vanishes_while_reading_is_named"],
    "grey stored as RGB": ["fundus.grey as RGB", "chest_xray.test_grey_in_other_clothes",
                           "lung_ct.test_upper_case_grey_as_rgb_and_sixteen_bits_are_read"],
    "16-bit images": ["fundus.16-bit grey", "fundus.test_16_bit_colour_keeps_its_upper_bits",
                      "chest_xray.test_grey_in_other_clothes",
                      "lung_ct.test_upper_case_grey_as_rgb_and_sixteen_bits_are_read"],
    "palette images": ["fundus.palettes", "chest_xray.test_grey_in_other_clothes"],
    "duplicates across splits": ["data_check.test_an_image_that_is_there_twice_is_named", "brats_full.test_a_twin_is_set_aside",
                                 "fundus.test_an_image_on_both_sides_of_drive_is_kept_in_test", "lung_ct.a_twin",
                                 "nodules.a_twin",
                                 "chest_xray.test_nobody_and_no_picture_is_on_both_sides"],
}


def tried(module: ModuleType) -> Iterator[str]:
    """Name what a module's tests try: the tests, and the cases they are given by name or by the function that spoils."""
    for name, test in inspect.getmembers(module, inspect.isfunction):
        if name.startswith("test_") and test.__module__ == module.__name__:
            yield name
            for mark in getattr(test, "pytestmark", ()):
                for case in mark.args[1] if mark.name == "parametrize" else ():
                    first = case[0] if isinstance(case, tuple) else case
                    yield getattr(first, "__name__", str(first))


THERE = {f"{name}.{case}" for name, module in MODULES.items() for case in tried(module)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_hostile_input_is_tried(kind: str) -> None:
    """Each case named here is a test, or one of a test's cases."""
    assert KINDS[kind] and not set(KINDS[kind]) - THERE


def test_there_are_at_least_forty() -> None:
    """Distinct cases, over all readers; every reader's tests have some."""
    cases = {case for named in KINDS.values() for case in named}
    assert len(cases) >= 40 and len(KINDS) == 32 and {c.partition(".")[0] for c in cases} == set(MODULES)
