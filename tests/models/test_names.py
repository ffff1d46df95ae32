from models.names import LISTED, nearest


def test_similar_names_are_found_whatever_their_case():
    assert nearest("lightningdit", ["DiT", "LightningDiT", "SiT"]) == "nearest: LightningDiT"
    assert nearest("eulr", ["dopri5", "euler", "heun"]) == "nearest: euler, heun"


def test_all_valid_names_are_listed_if_none_is_similar_and_they_are_few():
    names = [f"column_{i}" for i in range(LISTED + 1)]
    assert nearest("xyz", names[:2]) == "valid: column_0, column_1"
    assert nearest("xyz", names).startswith("nearest: ")
    assert nearest("xyz", names).count(",") == 2
