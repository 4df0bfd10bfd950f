from .display import SILENT as SILENT
from .display import Display as Display
from .evaluation import evaluate as evaluate
from .export import export_model as export_model
from .prediction import PredictionResult as PredictionResult
from .prediction import predict as predict
from .preparation import compare as compare
from .preparation import prepare as prepare
from .preparation import undo as undo
from .promotion import explain as explain
from .promotion import promote as promote
from .promotion import rollback as rollback
from .requests import CollectRequest as CollectRequest
from .requests import EvaluateRequest as EvaluateRequest
from .requests import ExportRequest as ExportRequest
from .requests import PredictRequest as PredictRequest
from .requests import PrepareRequest as PrepareRequest
from .requests import ReviewRequest as ReviewRequest
from .requests import ServeRequest as ServeRequest
from .review import write_review_page as write_review_page
from .run_spec import RunSpec as RunSpec
from .search import NewStudy as NewStudy
from .search import create_study as create_study
from .search import reopen_study as reopen_study
from .search import run_study as run_study
from .search_final import AfterSearch as AfterSearch
from .search_trials import SearchResources as SearchResources
from .serving import ServerSettings as ServerSettings
from .serving import serve as serve
from .training import Resources as Resources
from .training import TrainResult as TrainResult
from .training import resume as resume
from .training import train as train

__all__ = [
    "SILENT",
    "AfterSearch",
    "CollectRequest",
    "Display",
    "EvaluateRequest",
    "ExportRequest",
    "NewStudy",
    "PredictRequest",
    "PredictionResult",
    "PrepareRequest",
    "Resources",
    "ReviewRequest",
    "RunSpec",
    "SearchResources",
    "ServeRequest",
    "ServerSettings",
    "TrainResult",
    "compare",
    "create_study",
    "evaluate",
    "explain",
    "export_model",
    "predict",
    "prepare",
    "promote",
    "reopen_study",
    "resume",
    "rollback",
    "run_study",
    "serve",
    "train",
    "undo",
    "write_review_page",
]
