from ablations.studies.ncsnv2.quoted import published_hyperparameters


def test_the_hyperparameter_table_shows_ours_the_papers_and_why_they_differ():
    rows = list(published_hyperparameters())
    paper = [row for row in rows if row["source"] == "paper (Table 4)"]
    computed = [row for row in rows if row["source"].startswith("computed")]
    assert len(paper) == 10
    assert [row["L"] for row in computed] == [219, 472, 745, 1026, 1026, 2182]
    assert all("learning rate: App. B.1; EMA: Sec. 5" in row["note"] for row in paper)
    notes = {row["dataset"].split()[0]: row["note"] for row in paper if row["note"].count(";") > 1}
    assert set(notes) == {"church_outdoor", "ffhq"}
