from .baselines import (
    pixel_gaussian_samples as pixel_gaussian_samples,
    uniform_noise_samples as uniform_noise_samples,
)
from .exact_score import (
    ImageMixture as ImageMixture,
    MixtureQuality as MixtureQuality,
)
from .extractors import EXTRACTORS as EXTRACTORS, SmallCNN as SmallCNN
from .features import (
    Features as Features,
    extract as extract,
    extract_features as extract_features,
    register_extractor as register_extractor,
)
from .frechet import (
    FeatureStatistics as FeatureStatistics,
    feature_statistics as feature_statistics,
    frechet_distance as frechet_distance,
    load_statistics as load_statistics,
    save_statistics as save_statistics,
)
from .manifold import (
    DensityCoverage as DensityCoverage,
    PrecisionRecall as PrecisionRecall,
    density_coverage as density_coverage,
    manifold_metrics as manifold_metrics,
    precision_recall as precision_recall,
)
from .neighbours import (
    Neighbours as Neighbours,
    nearest_in_blocks as nearest_in_blocks,
    nearest_neighbours as nearest_neighbours,
)
from .sample_quality import (
    Score as Score,
    inception_score as inception_score,
    kernel_distance as kernel_distance,
)
from .spaces import (
    INCEPTION as INCEPTION,
    MetricError as MetricError,
    default_extractor as default_extractor,
    distance_label as distance_label,
    extractor_digest as extractor_digest,
    feature_dimension as feature_dimension,
    metric_label as metric_label,
)
from .uncertainty import (
    Extrapolation as Extrapolation,
    Interval as Interval,
    bootstrap_interval as bootstrap_interval,
    distance_interval as distance_interval,
    extrapolate_distance as extrapolate_distance,
    influence_interval as influence_interval,
)
