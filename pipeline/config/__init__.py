"""One frozen model per job, from which its flags and its TOML keys are derived (jobs/flags.py).

What a field means is said under it, once; the model, not its fields, is what the code passes on. This is the door:
whoever wants a config imports it from here.
"""

from pipeline.config.base import Config, ConfigType, RunConfig, TableConfig, WriterConfig, checked, said
from pipeline.config.embedding import (
    FORMATS,
    Decode,
    EmbedConfig,
    EncodeConfig,
    FetchConfig,
    Fit,
    Format,
    ModelConfig,
    Precision,
    PreprocessConfig,
    SourceConfig,
    WaitConfig,
)
from pipeline.config.exchange import ImportConfig, ManifestConfig, VectorsConfig
from pipeline.config.indexing import IndexConfig, IndexOptions, PublishConfig, RollbackConfig
from pipeline.config.searching import EvaluateConfig, QueryConfig, SearchConfig, ServeConfig
from pipeline.config.submitting import SubmitConfig, SubmitRayJobConfig
from pipeline.config.upkeep import (
    BackfillConfig,
    CapacityConfig,
    DedupConfig,
    DoctorConfig,
    PlanConfig,
    RedriveConfig,
    StatusConfig,
    VacuumConfig,
    VerifyConfig,
)

__all__ = [
    "FORMATS",
    "BackfillConfig",
    "CapacityConfig",
    "Config",
    "ConfigType",
    "Decode",
    "DedupConfig",
    "DoctorConfig",
    "EmbedConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "FetchConfig",
    "Fit",
    "Format",
    "ImportConfig",
    "IndexConfig",
    "IndexOptions",
    "ManifestConfig",
    "ModelConfig",
    "PlanConfig",
    "Precision",
    "PreprocessConfig",
    "PublishConfig",
    "QueryConfig",
    "RedriveConfig",
    "RollbackConfig",
    "RunConfig",
    "SearchConfig",
    "ServeConfig",
    "SourceConfig",
    "StatusConfig",
    "SubmitConfig",
    "SubmitRayJobConfig",
    "TableConfig",
    "VacuumConfig",
    "VectorsConfig",
    "VerifyConfig",
    "WaitConfig",
    "WriterConfig",
    "checked",
    "said",
]
