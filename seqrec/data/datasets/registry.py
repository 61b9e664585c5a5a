"""The data sets of the RECE, SCE and CCE- papers, with the statistics that the papers or their code state."""

from __future__ import annotations

from dataclasses import replace

from seqrec.config import suggest
from seqrec.data.datasets.cells import Laws
from seqrec.data.datasets.columnar import Columnar
from seqrec.data.datasets.dataset import DataSet, Published, RawForm
from seqrec.data.datasets.delimited import Delimited
from seqrec.data.datasets.idomaar import Sessions
from seqrec.data.datasets.lines import DictLines, JsonLines
from seqrec.data.datasets.protocols import RECE, REPLAY, Filters
from seqrec.data.datasets.records import Records
from seqrec.data.datasets.rows import Role
from seqrec.errors import DataError, message

NONE = Filters()
LIKED = replace(REPLAY, rating_above=3.0)
BOUGHT = replace(REPLAY, event=2.0)
_CCE_MINUS = "CCE- (arXiv 2509.09682), its notebooks"
_STABILITY = "V. Shevchenko et al. From Variability to Stability: Advancing RecSys Benchmarking Practices. KDD 2024."

_BEER: dict[Role, str] = {"user": "review/profileName", "item": "beer/beerId", "time": "review/time"}
_AMAZON_JSON = JsonLines(
    {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "value": "overall"},
    {"user": "text", "item": "text", "time": "integer", "value": "number"},
)
_AMAZON_CSV = Delimited(
    {"user": ("user",), "item": ("item",), "time": ("timestamp",), "value": ("rating",)},
    columns=("user", "item", "rating", "timestamp"),
)
_AMAZON_2023 = Delimited(
    {"user": ("user_id",), "item": ("parent_asin",), "time": ("timestamp",), "value": ("rating",)}, quoted=True
)
_MOVIELENS = Delimited(
    {"user": ("userId",), "item": ("movieId",), "time": ("timestamp",), "value": ("rating",)}, quoted=True
)
_ZVUK: dict[Role, tuple[str, ...]] = {"user": ("user_id",), "item": ("track_id", "item_id"), "time": ("datetime",)}
_MEGAMARKET: dict[Role, tuple[str, ...]] = {
    "user": ("user_id",),
    "item": ("item_id",),
    "time": ("datetime",),
    "value": ("event",),
}
_REVIEWS = Laws("text", "text", "number", "seconds")
_EVENTS = Laws("integer", "integer", "date", "microseconds")


def _packed(pattern: str, form: Delimited | JsonLines | DictLines | Records | Sessions) -> tuple[RawForm, RawForm]:
    return RawForm(f"{pattern}.gz", form), RawForm(pattern, form)


def _amazon_2014(name: str, title: str, category: str, protocols: dict[str, Filters]) -> DataSet:
    return DataSet(
        name,
        title,
        (*_packed(f"reviews_{category}_5.json", _AMAZON_JSON), *_packed(f"ratings_{category}.csv", _AMAZON_CSV)),
        _REVIEWS,
        publisher="J. McAuley, UC San Diego: Amazon product data, release of 2014",
        terms="no formal licence; offered for research, to be cited",
        citation="R. He, J. McAuley. Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class "
        "Collaborative Filtering. WWW 2016.",
        protocols=protocols,
        value="rating",
    )


_ALL = (
    DataSet(
        "beeradvocate",
        "BeerAdvocate: reviews of beers",
        (
            *_packed("beeradvocate.json", DictLines(_BEER)),
            *_packed("beeradvocate.txt", Records(_BEER)),
        ),
        Laws("text", "integer", "number", "seconds", users_may_be_missing=True),
        publisher="J. McAuley, UC San Diego: Multi-aspect reviews",
        terms="no formal licence; offered for research, to be cited",
        citation="J. McAuley, J. Leskovec, D. Jurafsky. Learning Attitudes and Attributes from Multi-Aspect Reviews. "
        "ICDM 2012.",
        protocols={"rece": RECE, "none": NONE},
        published=(
            Published(RECE, "read", 33_387, 66_055, None, "SCE (arXiv 2409.18721), its notebook"),
            Published(RECE, "after filter", 7_606, 22_307, 1_409_494, "SCE (arXiv 2409.18721), its notebook"),
        ),
        note="Reviews without a profile name, and empty records, are left out and counted.",
    ),
    DataSet(
        "behance",
        "Behance: appreciated works of art",
        _packed(
            "Behance_appreciate_1M",
            Delimited(
                {"user": ("user",), "item": ("item",), "time": ("timestamp",)},
                delimiter=" ",
                columns=("user", "item", "timestamp"),
            ),
        ),
        _REVIEWS,
        publisher="J. McAuley, UC San Diego: Behance community art data",
        terms="no formal licence; offered for research, to be cited",
        citation="R. He, C. Fang, Z. Wang, J. McAuley. Vista: A Visually, Socially, and Temporally-aware Model for "
        "Artistic Recommendation. RecSys 2016.",
        protocols={"rece": RECE, "none": NONE},
        note="Ids have leading zeros and are kept as text.",
    ),
    replace(
        _amazon_2014("amazon_beauty_2014", "Amazon Beauty, 2014", "Beauty", {"none": NONE}),
        published=(
            Published(
                NONE, "after filter", 22_363, 12_101, 198_502, "amazon_beauty_5core, bundled", "reviews_Beauty_5.json*"
            ),
        ),
        note="The papers filter no further than the published 5-core.",
    ),
    _amazon_2014("amazon_kindle_2014", "Amazon Kindle Store, 2014", "Kindle_Store", {"rece": RECE, "none": NONE}),
    DataSet(
        "amazon_beauty_2023",
        "Amazon Beauty and Personal Care, 2023, 5-core",
        _packed("Beauty_and_Personal_Care.csv", _AMAZON_2023),
        Laws("text", "text", "number", "milliseconds"),
        publisher="McAuley Lab, UC San Diego: Amazon Reviews 2023, benchmark, 5core, rating_only",
        terms="no formal licence; offered for research, to be cited",
        citation="Y. Hou, J. Li, Z. He, A. Yan, X. Chen, J. McAuley. Bridging Language and Items for Retrieval and "
        "Recommendation. arXiv 2403.03952.",
        protocols={"replay": LIKED, "none": NONE},
        value="rating",
        published=(
            Published(LIKED, "chosen", 725_156, 207_369, 5_216_935, _CCE_MINUS),
            Published(LIKED, "after filter", 673_952, 176_450, 5_027_587, _CCE_MINUS),
        ),
    ),
    DataSet(
        "yelp",
        "Yelp: reviews of businesses",
        _packed(
            "yelp_academic_dataset_review.json",
            JsonLines(
                {"user": "user_id", "item": "business_id", "time": "date", "value": "stars"},
                {"user": "text", "item": "text", "time": "text", "value": "number"},
            ),
        ),
        Laws("text", "text", "date", "seconds"),
        publisher="Yelp: Yelp Open Dataset",
        terms="Yelp Dataset Terms of Use: academic use, no redistribution",
        citation="Yelp Open Dataset.",
        protocols={"rece": RECE, "none": NONE},
        value="rating",
    ),
    DataSet(
        "gowalla",
        "Gowalla: check-ins",
        _packed(
            "loc-gowalla_totalCheckins.txt",
            Delimited(
                {"user": ("user",), "item": ("location id",), "time": ("check-in time",)},
                delimiter="\t",
                columns=("user", "check-in time", "latitude", "longitude", "location id"),
            ),
        ),
        Laws("integer", "integer", "date", "seconds"),
        publisher="SNAP, Stanford: Gowalla",
        terms="no formal licence; offered for research, to be cited",
        citation="E. Cho, S. A. Myers, J. Leskovec. Friendship and Mobility: User Movement in Location-Based Social "
        "Networks. KDD 2011.",
        protocols={"rece": RECE, "replay": REPLAY, "none": NONE},
        published=(
            Published(REPLAY, "read", 107_092, 1_280_969, 6_442_892, _CCE_MINUS),
            Published(REPLAY, "after filter", 84_766, 308_962, 4_660_733, _CCE_MINUS),
        ),
        newest_first=True,
    ),
    DataSet(
        "ml_20m",
        "MovieLens 20M: ratings of films",
        (
            RawForm("ml-20m.zip", _MOVIELENS, "ratings.csv", md5="cd245b17a1ae2cc31bb14903e1204af3"),
            RawForm("ml-20m/ratings.csv", _MOVIELENS),
            RawForm("ratings.csv", _MOVIELENS),
        ),
        Laws("integer", "integer", "number", "seconds"),
        publisher="GroupLens, University of Minnesota: MovieLens 20M",
        terms="the licence in its README: research use, no redistribution without permission",
        citation="F. M. Harper, J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4), 2015.",
        protocols={"replay": LIKED, "none": NONE},
        value="rating",
        published=(
            Published(LIKED, "read", 138_493, 26_744, 20_000_263, _CCE_MINUS),
            Published(LIKED, "after filter", 138_078, 15_405, 12_180_742, _CCE_MINUS),
        ),
    ),
    DataSet(
        "30music",
        "30Music: listening sessions",
        (
            *_packed("relations/sessions.idomaar", Sessions()),
            *_packed("sessions.idomaar", Sessions()),
        ),
        Laws("integer", "integer", "number", "seconds"),
        publisher="Politecnico di Milano: 30Music listening and playlists dataset",
        terms="terms of its publisher; not stated in the files",
        citation="R. Turrin, M. Quadrana, A. Condorelli, R. Pagano, P. Cremonesi. 30Music Listening and Playlists "
        "Dataset. RecSys 2015, posters.",
        protocols={"replay": REPLAY, "none": NONE},
        published=(
            Published(REPLAY, "read", 45_175, 4_519_104, 31_351_945, _CCE_MINUS),
            Published(REPLAY, "after filter", 44_381, 909_487, 25_639_260, _CCE_MINUS),
        ),
    ),
    DataSet(
        "zvuk",
        "Zvuk: listening to music",
        (
            RawForm("zvuk-interactions.parquet", Columnar(_ZVUK)),
            *_packed("zvuk-interactions.csv", Delimited(_ZVUK, quoted=True)),
        ),
        _EVENTS,
        publisher="Sber AI Lab, on Kaggle: Zvuk dataset",
        terms="terms of its publisher; not stated in the files",
        citation=_STABILITY,
        protocols={"replay": REPLAY, "none": NONE},
        published=(
            Published(REPLAY, "read", 382_790, 1_506_950, 244_673_551, _CCE_MINUS),
            Published(REPLAY, "after filter", 370_528, 893_022, 243_411_750, _CCE_MINUS),
        ),
    ),
    DataSet(
        "megamarket",
        "Megamarket: purchases and other events of a shop",
        (
            RawForm("megamarket.parquet", Columnar(_MEGAMARKET)),
            *_packed("megamarket.csv", Delimited(_MEGAMARKET, quoted=True)),
        ),
        _EVENTS,
        publisher="Sber AI Lab, on Kaggle: Megamarket dataset",
        terms="terms of its publisher; not stated in the files",
        citation=_STABILITY,
        protocols={"replay": BOUGHT, "none": NONE},
        value="event",
        # The notebooks count every event, where the paper's code trains on purchases: comparable under --event off.
        published=(
            Published(REPLAY, "read", 367_038, 3_281_750, 118_342_938, _CCE_MINUS),
            Published(REPLAY, "after filter", 350_267, 1_661_327, 114_846_280, _CCE_MINUS),
        ),
    ),
)

DATA_SETS = {data_set.name: data_set for data_set in _ALL}


def named(name: str) -> DataSet:
    """Raises DataError with the known names."""
    if name not in DATA_SETS:
        hint = suggest(name, DATA_SETS)
        raise DataError(message("NAME", name, f"a data set: {', '.join(DATA_SETS)}", hint))
    return DATA_SETS[name]
