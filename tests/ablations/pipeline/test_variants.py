import pytest

from ablations.pipeline.variants import ALL_VARIANTS, PAPER_VARIANTS, Variant, parse_variant


def test_the_papers_four_variants_have_its_names():
    assert [v.name for v in PAPER_VARIANTS] == ["NCSN", "NCSN_5", "NCSN_1,2,4,5", "NCSNv2"]
    assert [v.techniques for v in PAPER_VARIANTS] == [(), (5,), (1, 2, 4, 5), (1, 2, 3, 4, 5)]


def test_every_subset_of_the_groups_is_one_variant():
    assert len(ALL_VARIANTS) == len({v.techniques for v in ALL_VARIANTS}) == 8
    assert len({v.slug for v in ALL_VARIANTS}) == 8
    assert all(v.slug.replace("_", "").isalnum() for v in ALL_VARIANTS)


@pytest.mark.parametrize("variant", ALL_VARIANTS, ids=lambda v: v.slug)
def test_names_and_slugs_parse_back(variant):
    assert parse_variant(variant.name) == variant
    assert parse_variant(variant.slug.upper()) == variant


def test_only_technique_5_chooses_the_weights():
    for variant in ALL_VARIANTS:
        assert variant.weights == ("ema" if 5 in variant.techniques else "raw")


def test_unknown_variant_lists_those_known():
    with pytest.raises(ValueError, match=r"'ncsnv3' is unknown.*ncsn_1245"):
        parse_variant("ncsnv3")
    assert Variant() == parse_variant("NCSN")
